"""A checkpoint's tokenizer together with the files beside it, of which some say how texts are written for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from caramba_core.teachers import Tokenizer

__all__ = ["CarriedTokenizer"]


class CarriedTokenizer:
    """A tokenizer as it is; :attr:`companions` are the texts of its checkpoint's files, ``name`` is whose it is."""

    def __init__(self, tokenizer: Tokenizer, name: str, companions: Callable[[], Mapping[str, str]]) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self._companions = companions

    @cached_property
    def companions(self) -> Mapping[str, str]:
        """What :meth:`Checkpoint.companions` gives."""
        return self._companions()

    @property
    def identity(self) -> str:
        """As the tokenizer says."""
        return self.tokenizer.identity

    @property
    def vocab_size(self) -> int:
        """As the tokenizer says."""
        return self.tokenizer.vocab_size

    @property
    def end_of_text(self) -> int | None:
        """As the tokenizer says."""
        return self.tokenizer.end_of_text

    @property
    def bos(self) -> int | None:
        """As the tokenizer says."""
        return self.tokenizer.bos

    @property
    def adds_bos(self) -> bool:
        """As the tokenizer says."""
        return self.tokenizer.adds_bos

    @property
    def stops(self) -> frozenset[int]:
        """As the tokenizer says."""
        return self.tokenizer.stops

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """As the tokenizer does."""
        return self.tokenizer.encode(text, special_tokens=special_tokens)

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """As the tokenizer does."""
        return self.tokenizer.encode_batch(texts, special_tokens=special_tokens)

    def decode(self, tokens: list[int]) -> str:
        """As the tokenizer does."""
        return self.tokenizer.decode(tokens)
