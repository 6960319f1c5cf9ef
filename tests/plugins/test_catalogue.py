"""The catalogue of who supplies what names every component of this repository's plugins."""

from __future__ import annotations

import tomllib
from pathlib import Path

from caramba_plugins_standard.catalogue import CATALOGUE

from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import registry

ROOT = Path(__file__).resolve().parents[2]


def test_catalogue_is_complete() -> None:
    declared: dict[str, dict[str, str]] = {}
    files = (*ROOT.glob("caramba_plugins_*/pyproject.toml"), *ROOT.glob("plugins/caramba_plugins_*/pyproject.toml"))
    for file in files:
        project = tomllib.loads(file.read_text())["project"]
        for kind in registry().kinds:
            for name in project.get("entry-points", {}).get(f"caramba.{kind}", {}):
                if not ComponentEntry(kind, name, project["name"], "", "").is_alias:
                    declared.setdefault(kind, {})[name] = project["name"]
    assert declared == CATALOGUE
