"""Pretrained models: what a distribution that reads them provides, and how the core asks it.

It lists the class of its reader as ``default`` in ``caramba.reader``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from caramba_core.errors import InputError, PluginError
from caramba_core.plugins.registry import registry

if TYPE_CHECKING:
    import torch

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel

__all__ = ["Pretrained", "Reader", "Tokenizer", "begin_of_text", "reader", "require_ids"]


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def identity(self) -> str:
        """A hash of vocabulary, merges and rules; token arrays carry it and models are checked against it."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, where there is one."""

    @property
    def bos(self) -> int | None:
        """The id that begins a text (BOS), where there is one."""

    @property
    def adds_bos(self) -> bool:
        """Whether the checkpoint's tokenizer puts BOS before every text."""

    @property
    def stops(self) -> frozenset[int]:
        """The ids that end a generated text: end of sequence, end of a turn."""

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids of a text, nothing added; what spells a special token is one only with ``special_tokens``."""

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """The same of each of several texts, on all cores."""

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""


def require_ids(stops: Collection[int], vocab_size: int) -> None:
    """Raise :class:`InputError` for an id that ends a text and that a model of this vocabulary never gives."""
    beyond = sorted(id_ for id_ in stops if id_ >= vocab_size)
    if beyond:
        raise InputError(
            f"the tokenizer ends a text with token {beyond[0]}, beyond the model's vocabulary",
            expected=f"ids below {vocab_size}",
            hint="correct eos_token_id in the checkpoint's config.json or generation_config.json",
        )


def begin_of_text(tokenizer: Tokenizer, add_bos: bool | None, what: str) -> list[int]:
    """The ids before a text: BOS or nothing, as the checkpoint's tokenizer does where ``add_bos`` is not given.

    ``what`` names the text where there is no BOS to add (:class:`InputError`).
    """
    if not (tokenizer.adds_bos if add_bos is None else add_bos):
        return []
    if tokenizer.bos is None:
        raise InputError(f"{what} is to begin with BOS, and the tokenizer has none", hint="leave add_bos out")
    return [tokenizer.bos]


class Pretrained(Protocol):
    """A pretrained model that was found: its headers are read, its weights are not.

    ``graph`` is that of the model, ``pinned`` an address of exactly this content.
    """

    @property
    def graph(self) -> Graph: ...  # noqa: D102
    @property
    def pinned(self) -> str: ...  # noqa: D102
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that it carries, if any."""

    def check(self) -> None:
        """Raise :class:`InputError` where its weights are not those that its configuration describes."""

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """The model with its weights, frozen; every tensor is checked before it is used."""


class Reader(Protocol):
    """What finds pretrained models; made without arguments.  Light: plans use it."""

    def open(self, source: str, folder: Path, *, sha256: str | None = None) -> Pretrained:
        """The model that a manifest's ``source`` names, fetched where needed.

        Relative names are relative to ``folder``; ``sha256`` is the hash that the file must have.  Raises
        :class:`~caramba_core.errors.InputError` where there is none, or none that can be read.
        """

    def cached(self, source: str, folder: Path) -> Pretrained | str:
        """The same without the network; why not, where it is not on this machine."""


def reader(source: str) -> Reader:
    """The installed reader; raises :class:`PluginError` where there is none for ``source``."""
    try:
        found: Reader = registry().default("reader")
    except PluginError as error:
        raise PluginError(f"{source}: no installed plugin reads pretrained models", hint=error.hint) from None
    return found
