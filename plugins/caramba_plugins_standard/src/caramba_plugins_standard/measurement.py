"""Likelihoods of held-out tokens as runs keep them, and differences between models on the same tokens; no torch."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from caramba_core.errors import InputError
from caramba_core.places import regular
from caramba_core.run.atomic import publish_file

__all__ = ["Measurement", "error_of_mean", "paired_difference"]

_BLOCK = 128
"""Neighbouring tokens share their context, so errors are estimated from means over blocks of this many tokens."""

_DIGEST = hashlib.sha256().digest_size


@attrs.frozen(kw_only=True, eq=False)
class Measurement:
    """Negative log-likelihoods in nats of every scored token: ``[windows, context - 1]``, float32 or float64."""

    nll: np.ndarray[tuple[int, int], np.dtype[np.floating[Any]]]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(float(self.nll.astype(np.float64).mean()))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the perplexity (delta method, over blocks of tokens); none where there is one block."""
        error = error_of_mean(self.nll)
        return None if error is None else self.perplexity * error

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return int(self.nll.size)

    def save(self, path: Path) -> None:
        """Keep the likelihoods of every token: a ``.npy`` file, and its SHA-256 at the end, which readers pass over."""
        content = io.BytesIO()
        np.lib.format.write_array(content, self.nll)
        with publish_file(path) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    @classmethod
    def load(cls, path: Path) -> Measurement:
        """Read what :meth:`save` kept; :class:`InputError` where it is not that any more."""
        hint = "remove it, and it is measured anew"
        try:
            content = regular(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}", hint=hint) from error
        array, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.sha256(array).digest() != digest:
            raise InputError(f"{path} is not as it was written", hint=hint)
        return cls(nll=np.load(io.BytesIO(array), allow_pickle=False))


def paired_difference(a: Measurement, b: Measurement) -> tuple[float, float | None]:
    """Mean of ``log perplexity(a) - log perplexity(b)`` over the same tokens, and its standard error, if any."""
    difference = a.nll.astype(np.float64) - b.nll.astype(np.float64)
    return float(difference.mean()), error_of_mean(difference)


def error_of_mean(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]] | np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> float | None:
    """Standard error of the mean of values of tokens, ``[windows, tokens]``, over blocks; none where there is one."""
    means = [
        block.mean()
        for row in values.astype(np.float64)
        for block in np.array_split(row, max(1, round(len(row) / _BLOCK)))
    ]
    return float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
