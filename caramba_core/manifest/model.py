"""Typed models from plain data, for models that no manifest spells out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caramba_core.document.faults import Faults
from caramba_core.document.source import SourceText, TextSpan
from caramba_core.errors import ManifestError
from caramba_core.manifest.structure import Structurer
from caramba_core.model import Model
from caramba_core.plugins.registry import registry

__all__ = ["structure_model"]


def structure_model(model: Mapping[str, Any], *, origin: str = "model") -> Model:
    """A typed model from plain data in the words of a manifest; ``origin`` names it in problems."""
    try:
        made: Model = Structurer(registry()).structure(_as_read(model), Model)
    except Faults as error:
        span = TextSpan(SourceText(name=origin, text="", placeless=True), 0, 0)
        raise ManifestError(tuple(fault.located(span) for fault in error.below("model"))) from None
    return made


def _as_read(value: Any) -> Any:
    """Plain data with dictionaries and lists alone, as a manifest's text gives it."""
    if isinstance(value, Mapping):
        return {key: _as_read(item) for key, item in value.items()}
    return [_as_read(item) for item in value] if isinstance(value, list | tuple) else value
