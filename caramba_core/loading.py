"""Reading pretrained checkpoints: what a loader plugin gives.

A loader is registered in ``caramba.loader`` as a light class.  It recognizes a file or folder, tells the model inside in
the words of a manifest (without torch or numpy: plans use it), and streams the tensors under the graph's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Loader", "Tokenizer"]


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def identity(self) -> str:
        """A hash of vocabulary, merges and rules; token arrays carry it and models are checked against it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, where there is one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens added."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""
        ...


class Checkpoint(Protocol):
    """A checkpoint that was recognized; opening it reads headers only."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    def model(self) -> Mapping[str, Any]:
        """The model inside, in the words of a manifest's ``model:``; plain data, no torch, no numpy."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, as ``(parameter name in the graph without "model.", values on the CPU)``.

        Streams: one tensor is in memory at a time.  Raises :class:`~caramba_core.errors.InputError` where a tensor is
        damaged, or has no place in the graph.
        """
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the checkpoint carries, if any."""
        ...


class Loader(Protocol):
    """The class that an entry of ``caramba.loader`` names."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this file or folder is of the loader's format (by its first bytes or its files, never by loading it)."""
        ...

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the headers; raises :class:`~caramba_core.errors.InputError` where they are damaged."""
        ...
