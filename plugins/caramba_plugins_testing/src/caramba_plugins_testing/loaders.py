"""Checks of a checkpoint loader against a sound checkpoint and against what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from caramba_plugins_standard.loading import Checkpoint, Loader, Stored
from caramba_plugins_standard.loading.filling import load_weights

from caramba_core.errors import InputError
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_plugins_testing.case import CheckFailed, about, require
from caramba_plugins_testing.interpreter import heavy_imports

__all__ = ["check_loader"]

_METHODS = ("model", "layout", "tensors", "tokenizer", "companions")
"""What a checkpoint must be able to do; see :class:`~caramba_plugins_standard.loading.Checkpoint`."""


def check_loader(loader: type[Loader], path: Path, folder: Path) -> None:
    """Hold a loader to its contract with the sound checkpoint at ``path``; ``folder`` takes damaged copies.

    It recognizes the checkpoint and nothing else, tells the model in a manifest's words without importing torch or
    numpy, streams the tensors that its layout announces (the same values as in the spans that it names), fills the
    model completely, and refuses damaged files with an :class:`InputError`.  Raises :class:`CheckFailed`.
    """
    with about(loader.__name__):
        _check_recognition(loader, path, folder)
        checkpoint = loader.open(path)
        absent = [method for method in _METHODS if not callable(getattr(checkpoint, method, None))]
        require(not absent, f"what open() gives has no method {', '.join(absent)}")
        _check_streams(checkpoint)
        try:
            described = json.loads(json.dumps(checkpoint.model()))
        except (TypeError, ValueError) as error:
            raise CheckFailed(f"model() is not plain data: {error}") from error
        load_weights(build(lower(structure_model(described, origin=str(path)))), checkpoint)
        heavy = heavy_imports(
            f"from pathlib import Path\nfrom {loader.__module__} import {loader.__qualname__} as Loader\n"
            f"checkpoint = Loader.open(Path({str(path)!r}))\ncheckpoint.model()\ncheckpoint.layout()",
            what="opening",
        )
        require(not heavy, f"open(), model() or layout() imports {heavy}; plans must not need it")
        _check_damage(loader, path, folder)


def _check_recognition(loader: type[Loader], path: Path, folder: Path) -> None:
    require(loader.accepts(path), f"does not accept its own {path.name}")
    empty = folder / "empty_folder"
    empty.mkdir()
    strangers: dict[Path, bytes] = {
        folder / "empty_file": b"",
        folder / "page.html": b"<!DOCTYPE html><html></html>",
        folder / "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        folder / "noise": bytes(range(256)) * 8,
    }
    for file, content in strangers.items():
        file.write_bytes(content)
    for stranger in (empty, *strangers):
        require(not loader.accepts(stranger), f"accepts {stranger.name}, which is not its format")


def _check_streams(checkpoint: Checkpoint) -> None:
    layout = {stored.name: stored for stored in checkpoint.layout() if stored.name is not None}
    announced = {key: stored.shape for key, stored in layout.items()}
    given: dict[str, Any] = {}
    for key, tensor in checkpoint.tensors():
        require(key not in given, f"tensors() gives {key} twice")
        given[key] = tuple(tensor.shape)
        if key in layout:
            _check_span(layout[key], tensor)
    wrong = sorted(key for key in given.keys() | announced.keys() if given.get(key) != announced.get(key))
    require(not wrong, f"layout() and tensors() differ in {', '.join(wrong[:5])}")


def _check_span(stored: Stored, tensor: torch.Tensor) -> None:
    """Filling looks at the bytes of a span in the place of what is streamed: they must be the same."""
    span, dtype = stored.span, str(tensor.dtype).removeprefix("torch.")
    if span is None:
        return
    require(span.dtype == dtype, f"the span of {stored.key} is of {span.dtype}, and tensors() gives {dtype}")
    with span.path.open("rb") as file:
        file.seek(span.offset)
        there = file.read(tensor.nbytes)
    same = there == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    require(same, f"the span of {stored.key} does not hold the values that tensors() gives")


def _check_damage(loader: type[Loader], path: Path, folder: Path) -> None:
    """Cut every file of the checkpoint in half, one at a time."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        copy = folder / f"damaged_{number}" / path.name
        copy.parent.mkdir()
        if path.is_file():
            shutil.copyfile(path, copy)
        else:
            shutil.copytree(path, copy)
        target = copy / file.relative_to(path)
        content = target.read_bytes()
        target.write_bytes(content[: len(content) // 2])
        try:
            if not loader.accepts(copy):
                continue
            checkpoint = loader.open(copy)
            load_weights(build(lower(structure_model(checkpoint.model(), origin=str(copy)))), checkpoint)
        except InputError:
            continue
        except Exception as error:
            said = f"half of {target.name} raises {type(error).__name__}: {error}; raise InputError instead"
            raise CheckFailed(said) from error
        raise CheckFailed(f"half of {target.name} is taken for a sound checkpoint")
