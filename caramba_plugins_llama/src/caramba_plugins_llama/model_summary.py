"""What a card reads of a run's ``summary.json``, once it is known to be what a run writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from caramba_core.errors import InputError

__all__ = ["checked_summary"]

_TEXTS: Final = ("name", "group", "run")
_COUNTS: Final = ("seed", "scored_tokens", "tokens", "calibration_tokens", "parameters", "cache_context")
_PERPLEXITIES: Final = ("perplexity", "perplexity_standard_error", "perplexity_ratio")
_FIGURES: Final = (*_PERPLEXITIES, "cache_bytes_per_token", "cache_bytes_once")


def checked_summary(path: Path, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same summary, or none; raises :class:`InputError` for the first key that is not what a run writes."""
    for key in summary and (*_TEXTS, "seed"):
        if key not in summary:
            raise _damaged(path, f"it has no {key}")
    for key, value in summary.items():
        figures = value.values() if isinstance(value, Mapping) else None
        if not (
            (key not in _TEXTS or isinstance(value, str))
            and (key not in _COUNTS or type(value) is int)
            and (key != "commit" or value is None or isinstance(value, str))
            and (key != "versions" or (figures is not None and all(isinstance(one, str) for one in figures)))
            and (key not in _FIGURES or (figures is not None and all(_is_figure(key, one) for one in figures)))
        ):
            raise _damaged(path, f"{key} is {str(value)[:60]!r}")
    return summary


def _is_figure(key: str, value: Any) -> bool:
    if value is None:  # of one block of tokens there is no standard error
        return key == "perplexity_standard_error"
    return type(value) in (int, float) and 0 <= value < math.inf


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path} is damaged: {problem}", hint="put it back, or remove it: the card then tells no figures")
