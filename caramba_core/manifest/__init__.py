"""Reading manifests: from a file or preset to typed configs, every problem with its place.

The names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Loaded", "dump", "load_manifest", "structure_model"]

_HOMES: Final = {"Loaded": "load", "dump": "writing", "load_manifest": "load", "structure_model": "structure"}

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded, load_manifest
    from caramba_core.manifest.structure import structure_model
    from caramba_core.manifest.writing import dump


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"caramba_core.manifest.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'caramba_core.manifest' has no attribute {name!r}")
