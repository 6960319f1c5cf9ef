"""A checkpoint's tokenizer together with the files beside it, of which some say how texts are written for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from caramba_core.teachers import Tokenizer

__all__ = ["CarriedTokenizer"]


class CarriedTokenizer:
    """A tokenizer, to which it hands on whatever it is asked, beside the texts of its checkpoint's files.

    ``name`` is whose it is.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, companions: Callable[[], Mapping[str, str]]) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self._companions = companions

    @cached_property
    def companions(self) -> Mapping[str, str]:
        """What :meth:`Checkpoint.companions` gives."""
        return self._companions()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["tokenizer"], name)
