"""A registry of example components in place of what happens to be installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from caramba_core.plugins.metadata import ComponentEntry, Plugin
from caramba_core.plugins.registry import Registry

from .workspace import Workspace

HERE = Path(__file__).parent
MODULE = "caramba_example_components"
EXAMPLE = "caramba-plugin-example"

COMPONENTS = {
    "layer": {"rms_norm": "Norm", "swiglu": "Mlp"},
    "attention": {"gqa": "Grouped", "no_config": "NoConfig", "gone": "Gone"},
    "embedder": {"token": "Tokens"},
    "head": {"default": "Linear", "linear": "Linear"},
    "topology": {"stacked": "Chain", "nested": "Repeated", "residual": "Chain"},
    "dataset": {"tokens": "Array", "text": "Text", ".npy": "Array", ".txt": "Text"},
    "strategy": {"distill": "Distill", "pretrain": "Pretrain"},
    "optimizer": {"adam": "Adam"},
    "mode": {"convert": "Convert", "train": "Train", "eval": "Evaluate", "generate": "Generate"},
}


def example_registry() -> Registry:
    def entries(distribution: str, components: dict[str, dict[str, str]]) -> tuple[ComponentEntry, ...]:
        return tuple(
            ComponentEntry(kind, name, distribution, "1.2.0", f"{MODULE}:{value}")
            for kind, names in components.items()
            for name, value in names.items()
        )

    example = Plugin(
        name=EXAMPLE,
        version="1.2.0",
        entries=(
            *entries(EXAMPLE, COMPONENTS),
            ComponentEntry("preset", "small", EXAMPLE, "1.2.0", f"{MODULE}:SMALL"),
            ComponentEntry("preset", "lost", EXAMPLE, "1.2.0", f"{MODULE}:LOST"),
            ComponentEntry("catalogue", "example", EXAMPLE, "1.2.0", f"{MODULE}:CATALOGUE"),
        ),
    )
    return Registry({EXAMPLE: example})


@pytest.fixture
def example_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Puts the example components in place of the installed ones."""
    spec = importlib.util.spec_from_file_location(MODULE, HERE / "components.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, MODULE, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    registry = example_registry()
    for user in ("load", "structure"):
        monkeypatch.setattr(f"caramba_core.manifest.{user}.registry", lambda: registry)
    return registry


@pytest.fixture
def workspace(example_plugins: Registry, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)
