"""Distributions made up in a temporary folder, and the command run with them in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from caramba_core import __version__
from tests import prepared
from tests.prepared import Ran, Started

__all__ = ["ATTENTION", "CORE_RANGE", "Site"]

CORE_RANGE = f">={__version__},<9"

ATTENTION = """
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_core.components import component, option

@component
class Attention(GroupedQueryAttention):
    '''An attention.'''
    n_heads: int = option(default=1, help="heads", minimum=1)
    n_kv_heads: int = option(default=1, help="key/value heads", minimum=1)
    head_dim: int = option(default=8, help="width of a head", minimum=1)
"""


class Site:
    """A folder of made-up distributions that comes first on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "site"
        self.folder.mkdir()
        self.cache = folder / "cache"

    def add(
        self,
        name: str,
        *,
        entries: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        requires: Sequence[str] = (f"caramba-core{CORE_RANGE}",),
    ) -> Path:
        """Install a distribution: entry points by group, modules by name; its metadata folder."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        header = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(header) + "\n\nText.\n")
        sections = []
        for group, points in entries.items():
            sections.append(f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()))
        (info / "entry_points.txt").write_text("\n".join(sections))
        for module, text in (modules or {}).items():
            (self.folder / f"{module}.py").write_text(text)
        return info

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables that commands run with: these distributions stand beside the real ones."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("CARAMBA_")},
            "PYTHONPATH": str(self.folder),
            "XDG_CACHE_HOME": str(self.cache),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            **(more or {}),
        }

    def python(self, program: str) -> Ran:
        """``python -c PROGRAM`` in an interpreter that has imported nothing."""
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Started:
        """Start ``python -m MODULE ARGUMENTS``."""
        return prepared.start(module, *arguments, cwd=cwd or self.folder, environment=self.environment(environment))

    def run(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Ran:
        """``python -m MODULE ARGUMENTS``, to its end."""
        return self.start(module, *arguments, environment=environment, cwd=cwd).ended()

    def caramba(self, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ran:
        """``caramba ARGUMENTS``."""
        return self.run("caramba", *arguments, environment=environment, cwd=cwd)

    def check(self, *arguments: str) -> Ran:
        """``caramba plugins check ARGUMENTS`` in a new interpreter: it says who imports torch."""
        return self.python(f"from caramba_core.cli import main; main({['plugins', 'check', *arguments]!r})")
