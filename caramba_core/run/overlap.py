"""Whether the held-out tokens are among those that a run learns from."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np

from caramba_core.datasets import Tokens

__all__ = ["share_found"]

_SPANS: Final = 16
_SPAN: Final = 64
"""Tokens of a span that is looked for: long enough that texts of different content do not share it."""

_SEARCHED: Final = 1 << 25
"""Training tokens in which spans are looked for anywhere; in longer arrays, at their own place as well."""

_PIECE: Final = 1 << 20
_CANDIDATES: Final = 1 << 12
"""Places in a piece at which a span is compared: more have its rarest id only in texts without variety."""


def share_found(train: Tokens, heldout: Tokens) -> float:
    """The share of the held-out tokens that a run learns from as well.

    Where both read one file it is known; else it is the share of held-out spans, sampled evenly, that stand among the
    training tokens.
    """
    learned = defaultdict[Path, list[list[float]]](list)
    for path, *span in train.parts:
        learned[path.resolve()].append(span)
    read = [(learned.get(path.resolve()), first, last) for path, first, last in heldout.parts]
    if any(others is not None for others, _, _ in read):
        common = (max(0.0, min(b, d) - max(a, c)) for others, a, b in read for c, d in others or ())
        return min(1.0, sum(common) / sum(last - first for _, first, last in heldout.parts))
    size = min(_SPAN, len(heldout.ids))
    starts = map(int, np.linspace(0, len(heldout.ids) - size, _SPANS))
    spans = [(start, heldout.read(start, start + size)) for start in starts]
    found = [_holds(train, start, start + size, span) or _holds(train, 0, _SEARCHED, span) for start, span in spans]
    return sum(found) / _SPANS


def _holds(tokens: Tokens, first: int, last: int, span: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    """Whether the ids of a span follow each other somewhere among those from ``first`` to ``last - 1``."""
    size, rarest = len(span), int(span.argmax())  # large ids are rare
    last = min(last, len(tokens.ids))
    for start in range(first, last - size + 1, _PIECE):
        piece = tokens.read(start, min(last, start + _PIECE + size - 1))
        places = np.flatnonzero(piece[rarest : len(piece) - size + 1 + rarest] == span[rarest])[:_CANDIDATES]
        for offset, id_ in enumerate(span):
            places = places[piece[places + offset] == id_]
        if len(places):
            return True
    return False
