"""Small manifests for tests, written under a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import Loaded, load_manifest

SMALL = (Path(__file__).parent / "presets" / "small.yml").read_text(encoding="utf-8")
"""A sound manifest of the example components: one group ``main`` with runs ``convert`` and ``tune``."""


@attrs.frozen
class Workspace:
    folder: Path

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def load(self, text: str, *overrides: str, name: str = "m.yml") -> Loaded:
        return load_manifest(self.write(name, text), overrides=overrides)

    def report(self, text: str, *overrides: str, name: str = "m.yml") -> list[str]:
        """``line:column message`` of every problem."""
        try:
            self.load(text, *overrides, name=name)
        except ManifestError as error:
            return [f"{p.line}:{p.column} {p.headline}" for p in error.problems]
        return []


def changed(*pairs: tuple[str, str]) -> str:
    """The small manifest with pieces of it replaced."""
    text = SMALL
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def block(loaded: Loaded, group: int = 0) -> Any:
    """The repeated block of a group's model."""
    topology: Any = loaded.manifest.groups[group].model.topology
    return topology.layers[0]
