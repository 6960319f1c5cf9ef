"""Held-out tokens of several texts by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import attrs
import numpy as np

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_plugins_standard.marks import is_marked
from caramba_plugins_standard.mixtures import MixedTokens

__all__ = ["SeveralTexts"]


@attrs.frozen(kw_only=True, eq=False)
class SeveralTexts(Tokens):
    """Texts to measure on; where one text is read, it is the first of them."""

    texts: Mapping[str, Tokens]

    @classmethod
    def of(cls, texts: Mapping[str, Tokens]) -> SeveralTexts:
        """Texts by name.  Raises :class:`InputError` for different tokenizers, and for what is not one text."""
        for name, tokens in texts.items():
            if isinstance(tokens, MixedTokens | SeveralTexts) or is_marked(tokens):
                raise InputError(
                    f"{tokens.origin} is not one text that can be measured on",
                    expected=f"a text or an array without documents: true as {name}",
                )
        known = [tokens for tokens in texts.values() if tokens.tokenizer is not None]
        for other in known[1:]:
            if other.tokenizer != known[0].tokenizer:
                raise InputError(
                    f"{other.origin} and {known[0].origin} were made with different tokenizers",
                    hint="token ids mean other texts there: make the arrays again with one tokenizer",
                )
        first = next(iter(texts.values()))
        return cls(
            ids=first.ids,
            tokenizer=known[0].tokenizer if known else None,
            origin=first.origin,
            parts=first.parts,
            texts=dict(texts),
        )

    def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Ids ``first`` to ``last - 1`` of the first text: int64."""
        return next(iter(self.texts.values())).read(first, last)

    @property
    def hash(self) -> str:
        """SHA-256 of all texts' names and hashes."""
        facts = [(name, tokens.hash) for name, tokens in self.texts.items()]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def checked(self, limit: int | None = None) -> SeveralTexts:
        """The same texts, each checked."""
        return attrs.evolve(
            self, limit=limit, texts={name: tokens.checked(limit) for name, tokens in self.texts.items()}
        )
