"""The distributions of this repository, as their pyprojects describe them, and what their files import."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["CORE", "DISTRIBUTIONS", "ROOT", "Distribution", "Import", "imports", "project"]

ROOT = Path(__file__).resolve().parents[1]


@attrs.frozen(kw_only=True)
class Distribution:
    """One distribution: its packages, and what it must have, may have, and has to have for its tests."""

    name: str
    folder: Path
    package: Path
    needs: frozenset[str]
    optional: frozenset[str]
    for_tests: frozenset[str]

    @classmethod
    def read(cls, file: Path) -> Distribution:
        """What a pyproject says."""
        said = project(file)
        (package,) = tomllib.loads(file.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        extras = {name: _names(these) for name, these in said.get("optional-dependencies", {}).items()}
        for_tests = extras.pop("test", frozenset())
        return cls(
            name=said["name"],
            folder=file.parent,
            package=file.parent / package,
            needs=_names(said.get("dependencies", [])),
            optional=frozenset().union(*extras.values()),
            for_tests=for_tests,
        )


def project(file: Path) -> dict[str, Any]:
    """The table ``project`` of a pyproject."""
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return table


def _names(requirements: list[str]) -> frozenset[str]:
    return frozenset(canonicalize_name(Requirement(requirement).name) for requirement in requirements)


@attrs.frozen(kw_only=True)
class Import:
    """``from module import name``, or ``import module`` without a name; ``place`` is ``file:line``."""

    place: str
    module: str
    name: str | None

    @property
    def package(self) -> str:
        """The first part of the module's name."""
        return self.module.partition(".")[0]


def imports(file: Path) -> Iterator[Import]:
    """Every import in a file, those inside of functions and those for type hints included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            place = f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{node.lineno}"
            yield Import(place=place, module=module, name=name)


_FILES = [
    *sorted(ROOT.glob("*/pyproject.toml")),
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
]
CORE = Distribution.read(ROOT / "pyproject.toml")
DISTRIBUTIONS = [CORE, *map(Distribution.read, _FILES)]
