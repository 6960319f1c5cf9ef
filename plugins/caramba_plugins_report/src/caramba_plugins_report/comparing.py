"""Differences between models on the same held-out tokens, paired token by token, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.measurement import Measurement, paired_difference

from caramba_core.errors import InputError
from caramba_plugins_report.records import state_of

__all__ = ["Compared", "Ratio", "compare", "measured_at_end", "measurement", "paired_ratio"]

_NORMAL: Final = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""


@attrs.frozen(kw_only=True)
class Ratio:
    """A perplexity over another on the same tokens, and its 95 % interval, if there is more than a block of them.

    ``difference`` is its logarithm, in nats per token, ``standard_error`` that of it, over blocks of 128 tokens.
    """

    difference: float
    standard_error: float | None

    @property
    def ratio(self) -> float:
        """The ratio."""
        return math.exp(self.difference)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the ratio lies with 95 % confidence, the means of blocks taken as normal."""
        if self.standard_error is None:
            return None
        half = _NORMAL * self.standard_error
        return math.exp(self.difference - half), math.exp(self.difference + half)


@attrs.frozen(kw_only=True)
class Compared:
    """A run's perplexity at its end, and how it compares to the first; ``notes`` say what was measured otherwise."""

    path: Path
    perplexity: float
    standard_error: float | None
    tokens: int
    against: Ratio | None
    notes: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = {"path": str(self.path), "perplexity": self.perplexity}
        data |= {"standard_error": self.standard_error, "scored_tokens": self.tokens, "notes": list(self.notes)}
        if self.against is not None:
            data |= {"log_perplexity_difference": self.against.difference}
            data |= {"paired_standard_error": self.against.standard_error, "ratio": self.against.ratio}
            data |= {"ratio_interval_95": self.against.interval}
        return data


def compare(paths: Sequence[Path]) -> list[Compared]:
    """Compare the ends of runs with that of the first.

    Raises :class:`InputError` for a run without a measurement of its end, and for one of other tokens.
    """
    first = measured_at_end(paths[0])
    settings = [_settings(path) for path in paths if measured_at_end(path)]
    found: list[Compared] = []
    for path, own in zip(paths, settings, strict=True):
        measured = measured_at_end(path)
        same = all(own.get(key) == settings[0].get(key) for key in ("tokens", "windows", "context"))
        if not same or measured.nll.shape != first.nll.shape:
            raise InputError(
                f"{path} was measured on other tokens than {paths[0]}, or in other windows",
                hint="differences are paired token by token: give both runs the same data.heldout and eval",
            )
        notes = (
            f"{key} {own.get(key)}" for key in ("cache", "dtype", "device") if own.get(key) != settings[0].get(key)
        )
        found.append(
            Compared(
                path=path,
                perplexity=measured.perplexity,
                standard_error=measured.standard_error,
                tokens=measured.tokens,
                against=paired_ratio(measured, first) if found else None,
                notes=tuple(notes),
            )
        )
    return found


def paired_ratio(a: Measurement, b: Measurement) -> Ratio | None:
    """The perplexity of ``a`` over that of ``b``; ``None`` where they are of different tokens."""
    if a.nll.shape != b.nll.shape:
        return None
    difference, error = paired_difference(a, b)
    return Ratio(difference=difference, standard_error=error)


def measured_at_end(path: Path) -> Measurement:
    """The likelihoods at a run's end, which is its start where its mode changes no weights.

    Raises :class:`InputError` for a run that has not finished, or kept none.
    """
    state = state_of(path)
    if isinstance(state, str):
        raise InputError(state)
    if state.status != "done":
        raise InputError(f"{path} has not finished: it is {state.status} at step {state.step}")
    names = [name for name in ("end", "start") if (path / "evaluation" / f"{name}.npy").exists()]
    if not names:
        raise InputError(f"{path} has no measurement", hint="runs with data.heldout measure, and keep each likelihood")
    return measurement(path, names[0])


def measurement(path: Path, name: str) -> Measurement:
    """The likelihoods of ``teacher``, ``start`` or ``end`` of a run; :class:`InputError` where they are damaged."""
    file = path / "evaluation" / f"{name}.npy"
    try:
        measured = Measurement.load(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    if measured.nll.ndim != 2 or not measured.nll.size or measured.nll.dtype.kind != "f":
        raise InputError(f"{file} is damaged: it holds no likelihoods")
    return measured


def _settings(path: Path) -> dict[str, Any]:
    file = path / "evaluation" / "settings.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it does not say how the run measured")
    return found
