"""Perplexity at contexts, by position, and of a whole text per token, word and byte.

Axes: N windows, T tokens of a window.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import attrs
import numpy as np
from caramba_plugins_standard.measurement import Measurement, error_of_mean
from caramba_plugins_standard.perplexity import measure

from caramba_core.components import evolve
from caramba_core.datasets import Tokens
from caramba_core.modes import Evaluation
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Perplexity, Position, Rolling
from caramba_plugins_eval.subject import Subject

__all__ = ["NORMAL", "perplexity", "perplexity_of", "position", "rolling", "rolling_windows"]

NORMAL: Final = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""

_LARGEST: Final = 700.0
"""Beyond it, exp is no number any more."""

_Floats = np.ndarray[tuple[int, int], np.dtype[np.floating[Any]]]


def perplexity(metric: Perplexity, subject: Subject) -> dict[str, Figure]:
    """The perplexity in windows of each context."""
    return {
        str(context): perplexity_of(_measured(subject, subject.tokens, subject.settings(context), metric.called).nll)
        for context in metric.at(subject)
    }


def position(metric: Position, subject: Subject) -> dict[str, Figure]:
    """The perplexity of the tokens in each part of the window."""
    context = metric.context or subject.evaluation.context
    nll = _measured(subject, subject.tokens, subject.settings(context), metric.called).nll
    return {name: perplexity_of(nll[:, first - 1 : last]) for name, first, last in metric.parts(context)}


def rolling(metric: Rolling, subject: Subject) -> dict[str, Figure]:
    """The perplexity of the whole text: per token as elsewhere; words and bytes share out the same likelihood."""
    tokenizer, context = subject.required_tokenizer(metric.called), metric.context or subject.evaluation.context
    ids, begin = subject.tokens.read(0, len(subject.tokens.ids)), subject.begin_of_text(metric.called)
    if ids[0] == begin:  # the dataset put it there
        ids = ids[1:]
    text = tokenizer.decode(ids.tolist())
    windows, scored = rolling_windows(ids, begin, context)
    tokens = attrs.evolve(subject.tokens, ids=windows.reshape(-1))
    settings = evolve(subject.settings(windows.shape[1]), windows=len(windows))
    nll = _measured(subject, tokens, settings, metric.called).nll
    each = nll.astype(np.float64)[scored]
    total, size = float(each.sum()), len(text.encode())
    words = len(re.split(r"\s+", text))  # as lm-eval counts them
    found = {
        "token": perplexity_of(each[None, :]),
        "byte": Figure(value=math.exp(total / size), geometric=True),
        "bits_per_byte": Figure(value=total / size / math.log(2), unit="bits"),
    }
    if total / words < _LARGEST:  # a text without spaces is one word, of next to no likelihood
        found["word"] = Figure(value=math.exp(total / words), geometric=True)
    return found


def rolling_windows(
    ids: np.ndarray[tuple[int], np.dtype[np.int64]], begin: int, context: int
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    """A text as windows ``[N, T]`` of ``context`` tokens and the one behind, and which of them count: ``[N, T - 1]``.

    Every token of the text counts once, behind ``begin`` or tokens of the text; the last window is as long as the
    others, and counts what is left.
    """
    whole = np.concatenate([np.array([begin]), ids])
    length = min(context, len(ids))
    starts = [*range(0, len(ids) - length, length), len(ids) - length]
    windows = np.stack([whole[start : start + length + 1] for start in starts])
    scored = np.ones((len(starts), length), dtype=bool)
    if len(starts) > 1:
        scored[-1, : starts[-2] + length - starts[-1]] = False  # the window before counted them
    return windows, scored


def _measured(subject: Subject, tokens: Tokens, settings: Evaluation, called: str) -> Measurement:
    with subject.computing(), subject.bar(called, settings.windows * settings.context) as bar:
        return measure(subject.model, tokens, settings, progress=bar.advance)


def perplexity_of(nll: _Floats) -> Figure:
    """exp of the mean of negative log-likelihoods ``[N, T]``; the interval is that of the mean."""
    mean, error = float(nll.astype(np.float64).mean()), error_of_mean(nll)
    bounds = None if error is None else tuple(math.exp(mean + side * NORMAL * error) for side in (-1, 1))
    return Figure(value=math.exp(mean), interval=None if bounds is None else (bounds[0], bounds[1]), geometric=True)
