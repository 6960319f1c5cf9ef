"""caramba: manifest-driven transformer research.

The public names below are imported on first use, so that ``import caramba_core`` stays light.  The decorator
``component`` is not among them, because its module has that name: ``from caramba_core.component import component``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Attention": "component",
    "Body": "component",
    "CacheEntry": "component",
    "CarambaError": "errors",
    "Component": "component",
    "Constant": "component",
    "Cost": "component",
    "Embedder": "component",
    "Graph": "graph",
    "Head": "component",
    "InputError": "errors",
    "InvalidValue": "errors",
    "Layer": "component",
    "ManifestError": "errors",
    "Node": "graph",
    "Normal": "component",
    "PluginError": "errors",
    "Probe": "nn.module",
    "Router": "component",
    "Shape": "component",
    "Topology": "component",
    "Weight": "component",
    "hookimpl": "hookspecs",
    "option": "component",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from caramba_core.component import (
        Attention,
        Body,
        CacheEntry,
        Component,
        Constant,
        Cost,
        Embedder,
        Head,
        Layer,
        Normal,
        Router,
        Shape,
        Topology,
        Weight,
        option,
    )
    from caramba_core.errors import CarambaError, InputError, InvalidValue, ManifestError, PluginError
    from caramba_core.graph import Graph, Node
    from caramba_core.hookspecs import hookimpl
    from caramba_core.nn.module import Probe


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"caramba_core.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'caramba_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
