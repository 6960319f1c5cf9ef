"""Libraries that an extra of a distribution brings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from caramba_core.errors import PluginError

__all__ = ["library"]


def library(name: str, why: str, *, extra: str) -> Any:
    """The module ``name``; where it is not there :class:`PluginError` says ``why`` it is wanted, and what brings it."""
    try:
        return import_module(name)
    except ImportError as error:
        said = f"{why} with the library {name}, which is not installed"
        raise PluginError(said, hint=f"pip install '{extra}'") from error
