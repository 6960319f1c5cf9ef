"""Tokens of several sources, each with a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs
import numpy as np

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_plugins_standard.arrays import Joined
from caramba_plugins_standard.marks import Marked, MarkedTokens, is_marked

__all__ = ["MixedTokens"]


@attrs.frozen(kw_only=True, eq=False)
class MixedTokens(MarkedTokens):
    """Sources whose windows are drawn by their ``weights``; read in order, they follow each other."""

    sources: tuple[Tokens, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, parts: Sequence[tuple[float, Tokens]]) -> MixedTokens:
        """A mixture; mixtures in it give their own parts.  Raises :class:`InputError` for different tokenizers."""
        flat: list[tuple[float, Tokens]] = []
        for weight, tokens in parts:
            if isinstance(tokens, MixedTokens):
                total = sum(tokens.weights)
                flat += (
                    (weight * inner / total, one) for inner, one in zip(tokens.weights, tokens.sources, strict=True)
                )
            else:
                flat.append((weight, tokens))
        sources = [tokens for _, tokens in flat]
        known = [tokens for tokens in sources if tokens.tokenizer is not None]
        for other in known[1:]:
            if other.tokenizer != known[0].tokenizer:
                raise InputError(
                    f"{other.origin} and {known[0].origin} were made with different tokenizers",
                    hint="token ids mean other texts there: make the arrays again with one tokenizer",
                )
        return cls(
            ids=Joined([tokens.ids for tokens in sources]),
            tokenizer=known[0].tokenizer if known else None,
            origin=f"a mixture of {', '.join(tokens.origin for tokens in sources)}",
            parts=tuple(part for tokens in sources for part in tokens.parts),
            sources=tuple(sources),
            weights=tuple(weight for weight, _ in flat),
        )

    def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Ids ``first`` to ``last - 1`` of the sources one behind the other: int64."""
        begin = 0
        found: list[Marked] = [np.empty(0, np.int64)]
        for tokens in self.sources:
            low, high = max(first - begin, 0), min(last - begin, len(tokens.ids))
            if low < high:
                found.append(tokens.read(low, high))
            begin += len(tokens.ids)
        return np.concatenate(found)

    @property
    def has_marks(self) -> bool:
        """Whether those of a source do; a window of another source is one document then."""
        return any(map(is_marked, self.sources))

    @property
    def hash(self) -> str:
        """SHA-256 of the sources' hashes and their weights."""
        facts = [(tokens.hash, weight) for tokens, weight in zip(self.sources, self.weights, strict=True)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def checked(self, limit: int | None = None) -> MixedTokens:
        """The same tokens, each source checked."""
        return attrs.evolve(self, limit=limit, sources=tuple(tokens.checked(limit) for tokens in self.sources))
