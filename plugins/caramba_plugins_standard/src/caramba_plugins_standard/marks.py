"""Token ids with marks beside them, in one number: where a document begins, and what is read but not predicted."""

from __future__ import annotations

from typing import Final

import attrs
import numpy as np

from caramba_core.datasets import Tokens

__all__ = ["BEGINS", "GIVEN", "IDS", "MarkedTokens", "is_marked"]

IDS: Final = (1 << 32) - 1
"""The bits of the id itself."""

BEGINS: Final = 1 << 32
"""The token begins a document: nothing before it is seen from it on, and nothing predicts it."""

GIVEN: Final = 1 << 33
"""The token is context alone, such as a user's message: nothing predicts it."""

Marked = np.ndarray[tuple[int], np.dtype[np.int64]]


@attrs.frozen(kw_only=True, eq=False)
class MarkedTokens(Tokens):
    """Tokens that may have marks."""

    @property
    def has_marks(self) -> bool:
        """Whether some token may have one; windows are trained on as they are otherwise."""
        raise NotImplementedError(f"{type(self).__name__} does not define has_marks")

    def marked(self, first: int, last: int) -> Marked:
        """Ids ``first`` to ``last - 1`` with their marks: int64, each an id with :data:`BEGINS` and :data:`GIVEN`."""
        raise NotImplementedError(f"{type(self).__name__} does not define marked")


def is_marked(tokens: Tokens) -> bool:
    """Whether tokens have marks, so that a strategy has to heed them."""
    return isinstance(tokens, MarkedTokens) and tokens.has_marks
