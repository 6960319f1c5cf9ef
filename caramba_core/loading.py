"""Reading pretrained checkpoints: what loader and source plugins give, and how the core finds them.

A loader is registered in ``caramba.loader`` as a light class.  It recognizes a file or folder, tells the model inside
in the words of a manifest (without torch or numpy: plans use it), and streams the tensors under the graph's names.  A
source is registered in ``caramba.source`` under the scheme of its addresses (``hf`` for ``hf://org/repo``) and fetches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from caramba_core.errors import InputError, PluginError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Checkpoint",
    "Fetched",
    "FileSpan",
    "Loader",
    "Source",
    "Stored",
    "Tokenizer",
    "fetch_source",
    "find_loader",
    "open_fetched",
    "open_source",
    "what_it_seems",
]

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<location>.*)", re.DOTALL)


@attrs.frozen(kw_only=True)
class FileSpan:
    """Where a tensor's values lie in a file as they will in memory: row-major, without gaps, little-endian.

    They start at byte ``offset`` of ``path``; ``dtype`` is their type under torch's name (``bfloat16``).
    """

    path: Path
    offset: int
    dtype: str


@attrs.frozen(kw_only=True)
class Stored:
    """One tensor of a checkpoint, as the headers describe it.

    ``key`` is its name in the checkpoint, ``name`` the parameter of the graph that it fills (without ``model.``).  A
    loader that knows a tensor to hold nothing the graph needs (rotary frequencies that follow from the configuration)
    gives ``None``; a tensor that it does not know keeps its key as name, and filling a model with it is an error.

    ``span`` says where the very values that :meth:`Checkpoint.tensors` gives lie in a file, so that they can be looked
    at in pieces, by several threads.  ``None`` where they come about by reading: pickled, quantized, rearranged.
    """

    key: str
    name: str | None
    shape: tuple[int, ...]
    dtype: str
    span: FileSpan | None = None


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

    def key_of(self, path: tuple[str | int, ...]) -> str | None:
        """The key of the checkpoint's configuration behind the value at a path of :meth:`model`, for messages."""
        ...

    def layout(self) -> tuple[Stored, ...]:
        """Every tensor with its shape, from the headers alone; light, as :meth:`model`."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that has a name in the graph once, as ``(that name, values on the CPU)``.

        Streams: the loader keeps none of them.  The caller may keep one, unchanged until it asks for the next; no two
        share memory.  Raises :class:`~caramba_core.errors.InputError` where a tensor is damaged.
        """
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the checkpoint carries, if any."""
        ...

    def companions(self) -> Mapping[str, str]:
        """Files that a Hugging Face folder holds beside weights, by name: ``config.json``, tokenizer, settings."""
        ...


class Loader(Protocol):
    """The class that an entry of ``caramba.loader`` names."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this file or folder is of the loader's format: by first bytes or file names, never by loading it."""
        ...

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the headers; raises :class:`~caramba_core.errors.InputError` where they are damaged."""
        ...


@attrs.frozen(kw_only=True)
class Fetched:
    """What an address led to: ``path`` on this machine, ``pinned`` the address of exactly this content."""

    path: Path
    pinned: str


class Source(Protocol):
    """The class that an entry of ``caramba.source`` names; the entry's name is the scheme."""

    @classmethod
    def fetch(cls, location: str) -> Fetched:
        """Bring what stands behind ``scheme://`` here; :class:`~caramba_core.errors.InputError` says why not."""
        ...

    @classmethod
    def cached(cls, location: str) -> Path | None:
        """Where it already is on this machine, complete; ``None`` if it is not.  Light, and never the network."""
        ...


# ------------------------------------------------------------------------------------------------ finding them


def open_source(source: str, folder: Path, *, sha256: str | None = None) -> Checkpoint:
    """The checkpoint that a manifest's ``source`` names, its headers read.

    ``folder`` is what relative names are relative to; ``sha256`` the hash that the file must have.
    """
    return open_fetched(fetch_source(source, folder), sha256=sha256)


def open_fetched(fetched: Fetched, *, sha256: str | None = None) -> Checkpoint:
    """The checkpoint that was fetched, its headers read; ``sha256`` as in :func:`open_source`."""
    if sha256 is not None:
        _require_hash(fetched.path, sha256)
    return find_loader(fetched.path)


def fetch_source(source: str, folder: Path) -> Fetched:
    """What a ``source`` leads to: a file or folder as it is, an address through the plugin that knows its scheme."""
    address = _ADDRESS.fullmatch(source)
    if address is None:
        if not source or "\0" in source:
            raise InputError(
                f"{source!r} names no file", expected="a file, a folder or an address such as hf://org/repo"
            )
        path = folder / Path(source).expanduser()
        return Fetched(path=path, pinned=str(path))
    from caramba_core.plugins.registry import registry

    plugins = registry()
    known = {entry.name for entry in plugins.entries("source")}
    if address["scheme"] not in known:
        raise InputError(
            f"{source}: no installed plugin fetches from {address['scheme']}://",
            expected=", ".join(f"{name}://" for name in sorted(known)) or "a file or folder",
            hint="caramba plugins list shows what is installed",
        )
    found: type[Source] = plugins.load(plugins.find(("source",), address["scheme"]))
    return found.fetch(address["location"])


def find_loader(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, opened by the one loader that recognizes it."""
    _require_readable(path)
    from caramba_core.plugins.registry import registry

    plugins = registry()
    accepting: list[tuple[str, type[Loader]]] = []
    broken: list[PluginError] = []
    entries = plugins.entries("loader")
    for entry in entries:
        try:
            loader: type[Loader] = plugins.load(entry)
        except PluginError as error:  # another loader may still know the file
            broken.append(error)
            continue
        if loader.accepts(path):
            accepting.append((entry.qualified, loader))
    if len(accepting) > 1:
        raise PluginError(
            f"{path} is recognized by several loaders: {', '.join(name for name, _ in accepting)}",
            hint=f"switch one off: --no-plugin {accepting[-1][0].partition(':')[0]}",
        )
    if accepting:
        return accepting[0][1].open(path)
    if broken:
        raise broken[0]
    seems = what_it_seems(path)
    raise InputError(
        f"{path} is not a checkpoint that an installed plugin can read{seems and f': {seems}'}",
        expected=f"one of: {', '.join(entry.name for entry in entries)}" if entries else "an installed loader",
        hint="caramba plugins list shows the loaders that are installed",
    )


def _require_readable(path: Path) -> None:
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            (path / "..").stat()  # the way up leads through the folder: who may list it may still not enter it
        elif path.is_file():
            with path.open("rb") as file:
                file.read(1)
        elif path.exists():
            raise InputError(f"{path} is neither a file nor a folder")
        else:
            raise InputError(f"{path} does not exist", expected="a checkpoint file or folder")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def what_it_seems(path: Path) -> str:
    """What a file that cannot be read as it should seems to be, as a part of a sentence; nothing if that is unclear."""
    if path.is_dir():
        return "the folder is empty" if next(path.iterdir(), None) is None else ""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-LFS pointer, not the file itself (git lfs pull fetches it)"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, not a checkpoint (was it saved from a browser?)"
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return "it is a zip archive or a pickle, as torch.save writes them"
    return ""


def _require_hash(path: Path, expected: str) -> None:
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, which has no SHA-256 of its own", hint="leave out sha256, or name a file"
        )
    _require_readable(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise InputError(
            f"{path} has SHA-256 {found}", expected=expected.lower(), hint="fetch the file again, or correct sha256"
        )
