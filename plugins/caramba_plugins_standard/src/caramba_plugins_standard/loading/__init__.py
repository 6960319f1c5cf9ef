"""Reading pretrained checkpoints: what loader and source plugins provide, and how they are found.

A loader (``caramba.loader``) recognizes a file or folder, describes the model inside as a manifest does (without torch
or numpy: plans use it), and streams the tensors under the graph's names.  A source (``caramba.source``) fetches
addresses; its name is their scheme (``x`` for ``x://org/repo``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs

from caramba_core.errors import Faults, InputError, PluginError
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.places import expanded
from caramba_core.plugins.registry import registry

if TYPE_CHECKING:
    import torch

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.teachers import Tokenizer
    from caramba_plugins_standard.texts import Texts

__all__ = [
    "Checkpoint",
    "Fetched",
    "FileSpan",
    "Loader",
    "PretrainedModel",
    "PretrainedReader",
    "Source",
    "Stored",
    "cached_source",
    "fetch_source",
    "find_loader",
    "lower_checkpoint",
    "open_source",
    "texts_at",
    "what_it_seems",
]

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<location>.*)", re.DOTALL)


@attrs.frozen(kw_only=True)
class FileSpan:
    """Where a tensor's values lie in a file, laid out as in memory: row-major, contiguous, little-endian.

    They start at byte ``offset`` of ``path``; ``dtype`` is torch's name of their type (``bfloat16``).
    """

    path: Path
    offset: int
    dtype: str


@attrs.frozen(kw_only=True)
class Stored:
    """One tensor of a checkpoint, as the headers describe it.

    ``key`` is its name in the checkpoint, ``name`` the parameter of the graph that it fills (without ``model.``).
    ``name`` is ``None`` for a tensor that the graph is known not to need (rotary frequencies that follow from the
    configuration); a tensor that the loader does not know keeps its key as name, and filling a model with it is an
    error.  ``span`` says where the values that :meth:`Checkpoint.tensors` gives lie in a file, so that they can be
    checked without loading them; ``None`` where they are computed on reading: pickled, quantized, rearranged.
    """

    key: str
    name: str | None
    shape: tuple[int, ...]
    dtype: str
    span: FileSpan | None = None


class Checkpoint(Protocol):
    """A checkpoint that was recognized; opening it reads headers only."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    def model(self) -> Mapping[str, Any]:
        """The model inside, as under a manifest's ``model:``; plain data, no torch, no numpy."""

    def key_of(self, path: tuple[str | int, ...]) -> str | None:
        """The configuration's key that the value at a path of :meth:`model` comes from, for messages."""

    def layout(self) -> tuple[Stored, ...]:
        """Every tensor with its shape, from the headers alone; light, as :meth:`model`."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that has a name in the graph, once: ``(name, values on the CPU)``, one at a time.

        The loader keeps none of them; the caller may, and no two share memory, but must not write to one before it asks
        for the next.  Raises :class:`InputError` where a tensor is damaged.
        """

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the checkpoint carries, if any."""

    def companions(self) -> Mapping[str, str]:
        """Files that a Hugging Face folder holds beside weights, by name: ``config.json``, tokenizer, settings."""


class Loader(Protocol):
    """A reader of checkpoints.  An entry of ``caramba.loader`` names such a class."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this file or folder is of the loader's format: by first bytes or file names, never by loading it."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the headers; raises :class:`InputError` where they are damaged."""


@attrs.frozen(kw_only=True)
class Fetched:
    """What an address led to: ``path`` on this machine, ``pinned`` an address of exactly this content."""

    path: Path
    pinned: str


class Source(Protocol):
    """What fetches checkpoints.  An entry of ``caramba.source`` names such a class; its name is the scheme.

    One that has datasets, too, has a class method ``texts(location, *, column, subset, split)``, which gives
    :class:`~caramba_plugins_standard.texts.Texts` and raises :class:`InputError` where there are none.
    """

    @classmethod
    def fetch(cls, location: str) -> Fetched:
        """Download what follows ``scheme://``; raises :class:`InputError` where that fails."""

    @classmethod
    def cached(cls, location: str) -> Path | None:
        """Where it is on this machine, complete; ``None`` if it is not.  Light, and never uses the network."""


# ------------------------------------------------------------------------------------------------ finding them


class PretrainedModel:
    """A checkpoint as a pretrained model: the graph that it implies; ``pinned`` names exactly this content."""

    def __init__(self, checkpoint: Checkpoint, graph: Graph, pinned: str) -> None:
        self.checkpoint = checkpoint
        self.graph = graph
        self.pinned = pinned

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the checkpoint carries, if any, which knows the files beside it."""
        from caramba_plugins_standard.loading.carried import CarriedTokenizer

        found = self.checkpoint.tokenizer()
        carried = found and CarriedTokenizer(found, str(self.checkpoint.path), self.checkpoint.companions)
        return cast("Tokenizer | None", carried)

    def check(self) -> None:
        """Raise :class:`InputError` where the headers do not fit the configuration."""
        from caramba_plugins_standard.loading.filling import require_weights

        require_weights(self.graph, self.checkpoint)

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """The model with the checkpoint's weights, frozen; every tensor is checked before it is used."""
        from caramba_core.nn.build import build
        from caramba_plugins_standard.loading.filling import load_weights

        self.check()
        model = build(self.graph, device=device, dtype=dtype)
        load_weights(model, self.checkpoint)
        return model.requires_grad_(False).eval()


class PretrainedReader:
    """The reader of pretrained models: files, folders and addresses, in the formats of the installed loaders."""

    def open(self, source: str, folder: Path, *, sha256: str | None = None) -> PretrainedModel:
        """The model that a manifest's ``source`` names, fetched where needed."""
        fetched = fetch_source(source, folder)
        checkpoint = find_loader(fetched.path, sha256=sha256)
        return PretrainedModel(checkpoint, lower_checkpoint(checkpoint), fetched.pinned)

    def cached(self, source: str, folder: Path) -> PretrainedModel | str:
        """The same without the network; why not, where it is not on this machine."""
        try:
            path = cached_source(source, folder)
        except PluginError as error:  # a plan does without what a run will need
            return error.message
        if path is None or not path.exists():
            return "it has not been fetched yet" if path is None else f"{path} does not exist"
        checkpoint = find_loader(path)
        return PretrainedModel(checkpoint, lower_checkpoint(checkpoint), str(path))


def lower_checkpoint(checkpoint: Checkpoint) -> Graph:
    """The graph of the model inside of a checkpoint; raises :class:`InputError` for one that cannot be."""
    try:
        return lower(structure_model(checkpoint.model(), origin=str(checkpoint.path)))
    except Faults as error:
        raise InputError(f"{checkpoint.path} describes a model that cannot be:\n{error}") from None


def open_source(source: str, folder: Path, *, sha256: str | None = None) -> Checkpoint:
    """The checkpoint that a manifest's ``source`` names, its headers read.

    ``folder`` is what relative names are relative to; ``sha256`` the hash that the file must have.
    """
    return find_loader(fetch_source(source, folder).path, sha256=sha256)


def fetch_source(source: str, folder: Path) -> Fetched:
    """What a ``source`` leads to: a file or folder as it is, an address through the plugin that knows its scheme."""
    found = _resolve(source, folder)
    if isinstance(found, Path):
        return Fetched(path=found, pinned=str(found))
    fetcher, location = found
    return fetcher.fetch(location)


def cached_source(source: str, folder: Path) -> Path | None:
    """Where a ``source`` is on this machine; ``None`` if it would have to be fetched.  Never the network."""
    found = _resolve(source, folder)
    if isinstance(found, Path):
        return found
    fetcher, location = found
    return fetcher.cached(location)


def texts_at(address: str, *, column: str, subset: str | None, split: str) -> Texts:
    """The texts of the dataset at an address (``SCHEME://...``), through the plugin that knows its scheme."""
    found = _resolve(address, Path())
    assert not isinstance(found, Path), "an address has a scheme"
    source, location = found
    if not hasattr(source, "texts"):
        raise InputError(f"{address}: {source.__name__} fetches checkpoints, and no texts")
    texts: Texts = source.texts(location, column=column, subset=subset, split=split)
    return texts


def _resolve(source: str, folder: Path) -> Path | tuple[type[Source], str]:
    """The path that a ``source`` names, or the plugin that fetches it and the address without its scheme."""
    address = _ADDRESS.fullmatch(source)
    if address is None:
        if not source or "\0" in source:
            raise InputError(f"{source!r} names no file", expected="a file, a folder or an address (SCHEME://...)")
        return folder / expanded(source)
    plugins, scheme = registry(), address["scheme"]
    try:
        entry = plugins.find(("source",), scheme)
    except PluginError as error:
        raise PluginError(
            f"{source}: no installed plugin fetches from {scheme}://",
            expected=", ".join(f"{known.name}://" for known in plugins.entries("source")) or "a file or folder",
            hint=error.hint,
        ) from None
    found: type[Source] = plugins.load(entry)
    return found, address["location"]


def find_loader(path: Path, *, sha256: str | None = None) -> Checkpoint:
    """The checkpoint at ``path``, its headers read by the one loader that recognizes it.

    Raises :class:`InputError` for a path that cannot be read or has another hash than ``sha256``, and
    :class:`PluginError` where several loaders recognize it.
    """
    _require_readable(path)
    if sha256 is not None:
        _require_hash(path, sha256)
    entries = registry().entries("loader")
    accepting: list[tuple[str, type[Loader]]] = []
    broken: list[PluginError] = []
    for entry in entries:
        try:
            loader: type[Loader] = registry().load(entry)
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
            (path / "..").stat()  # fails for a folder that may be listed but not entered
        elif path.is_file():
            with path.open("rb") as file:
                file.read(1)
        else:
            problem = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise InputError(f"{path} {problem}", expected="a checkpoint file or folder")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _require_hash(path: Path, expected: str) -> None:
    if path.is_dir():
        hint = "leave out sha256, or name a file"
        raise InputError(f"{path} is a folder, which has no SHA-256 of its own", hint=hint)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        hint = "fetch the file again, or correct sha256"
        raise InputError(f"{path} has SHA-256 {found}", expected=expected.lower(), hint=hint)


def what_it_seems(path: Path) -> str:
    """What an unreadable file seems to be instead, as a part of a sentence; nothing if that is unclear."""
    if path.is_dir():
        if (path / "state.json").exists() and (path / "manifest.yml").exists():
            return (
                "it is a run of caramba (caramba export makes a checkpoint of it; from: GROUP/RUN begins with the "
                "weights of a run of the same manifest)"
            )
        return "the folder is empty" if next(path.iterdir(), None) is None else ""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-LFS pointer, not the file itself (git lfs pull fetches it)"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, not a checkpoint (was it saved from a browser?)"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "it is a zip archive or a pickle, as torch.save writes them"
    return ""
