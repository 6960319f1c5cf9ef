"""Writing a model as a Hugging Face folder, and reading it back before it appears."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import torch
from caramba_plugins_standard.loading import Checkpoint, find_loader
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import registry
from caramba_core.run.atomic import publish_folder
from caramba_core.run.checkpoint import save_tensors
from caramba_plugins_llama.export_source import ExportSource, open_export_source
from caramba_plugins_llama.exporting import Exporter, ExportError, Folder
from caramba_plugins_llama.model_card import model_card

__all__ = ["Exported", "export"]

_SHARD_BYTES: Final = 5_000_000_000
_INDEX: Final = "model.safetensors.index.json"
_SHOWN: Final = 8
"""Lines of an error."""
_LONGEST_NAME: Final = 200
"""Bytes of a folder's name: file systems take 255, of which the name that it is written under needs some."""
_SHOWN_NAME: Final = 60


@attrs.frozen(kw_only=True)
class Exported:
    """What was written: ``files`` by name, ``dtype`` of the weights, the ``exporter`` that described the folder.

    ``unfinished`` says of a run that has no result what became of it.
    """

    path: Path
    exporter: str
    dtype: str
    parameters: int
    files: tuple[str, ...]
    unfinished: str | None = None


def export(source: str | Path, output: Path, *, dtype: str = "auto", origin: str | None = None) -> Exported:
    """Write a model as a Hugging Face folder to ``output``, which must not exist.

    ``source`` is a run's folder, whose last checkpoint is written, or a checkpoint: a file, a folder or an address.
    ``dtype`` names the type of the weights; ``auto`` is the widest that the checkpoint holds, so that nothing is lost.
    ``origin`` is the checkpoint whose tokenizer and settings go with the model: the run's teacher, or the checkpoint
    itself, if not given.  Nothing is left behind where anything fails.
    """
    _require_room(output)
    found = open_export_source(str(source), origin)
    entry, folder = _described(found)
    kind = _dtype(found.tensors, dtype)
    config = {**folder.config, "torch_dtype": kind}
    shipped = not {"tokenizer.json", "tokenizer_config.json"}.isdisjoint((*found.companions, *folder.files))
    exporter = f"{entry.distribution} {entry.version}"
    card = model_card(output.name, folder, found, config, tokenizer=shipped, exporter=exporter)
    tensors = _converted(found.tensors, getattr(torch, kind))
    with publish_folder(output) as scratch:
        _write(scratch / "config.json", json.dumps(config, indent=2) + "\n")
        for file, content in {**found.companions, **folder.files}.items():
            _write(scratch / file, content)
        _write_weights(scratch, {folder.key(name): values for name, values in tensors.items()})
        _write(scratch / "README.md", card)
        _require_same(find_loader(scratch), tensors)
        files = tuple(sorted(path.name for path in scratch.iterdir()))
    count = sum(values.numel() for values in tensors.values() if values.is_floating_point())
    return Exported(
        path=output, exporter=entry.name, dtype=kind, parameters=count, files=files, unfinished=found.unfinished
    )


def _require_room(output: Path) -> None:
    """The folder can be made: nothing stands in its place, and what stands above it is a folder to write in."""
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} exists already", hint="name a folder that is not there yet")
    name = output.name
    if name in ("", "..") or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        shown = name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}..."
        raise InputError(
            f"{shown!r} is no name for a folder that others load",
            expected=f"letters, digits, punctuation and spaces, at most {_LONGEST_NAME} bytes",
            hint="name another one with --output",
        )
    above = next(parent for parent in output.absolute().parents if parent.exists() or parent.is_symlink())
    if not above.is_dir():
        raise InputError(f"{output} cannot be made: {above} is no folder", hint="name a folder elsewhere")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{output} cannot be made: {above} is not yours to write in", hint="name a folder elsewhere")


def _described(source: ExportSource) -> tuple[ComponentEntry, Folder]:
    """The folder, by the first exporter that can express the model."""
    plugins = registry()
    reasons = []
    for entry in plugins.entries("exporter"):
        exporter: type[Exporter] = plugins.load(entry)
        try:
            return entry, exporter.describe(source.graph, source.model, source.settings)
        except ExportError as error:
            reasons.append(f"{entry.name}: {error}")
    raise InputError(
        "no installed exporter can write this model:\n  " + "\n  ".join(reasons or ["there is none"]),
        hint="an attention's exporter comes with the attention's own distribution",
    )


def _dtype(tensors: Mapping[str, Tensor], wanted: str) -> str:
    floats = [value.dtype for value in tensors.values() if value.is_floating_point()]
    if wanted != "auto":
        return wanted
    widest = floats[0]
    for found in floats:
        widest = torch.promote_types(widest, found)
    return str(widest).removeprefix("torch.")


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _converted(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors in ``dtype``; :class:`InputError` names every one whose values it cannot hold."""
    broken = [name for name, values in tensors.items() if values.is_floating_point() and not values.isfinite().all()]
    if broken:
        raise InputError(
            f"{len(broken)} of {len(tensors)} tensors hold NaN or infinity: {', '.join(broken[:_SHOWN])}"
            f"{', ...' if len(broken) > _SHOWN else ''}",
            hint="such a model says nothing: export the run that it continues, or train it again with a lower lr",
        )
    converted = {name: values.to(dtype) if values.is_floating_point() else values for name, values in tensors.items()}
    problems = []
    for name, values in converted.items():
        if values.is_floating_point() and not values.isfinite().all():
            problems.append(f"{name}: its largest value is {tensors[name].abs().max().item():,.6g}")
    if problems:
        kind, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
        shown = [*problems[:_SHOWN], *(["..."] if len(problems) > _SHOWN else [])]
        raise InputError(
            f"{len(problems)} of {len(tensors)} tensors do not fit in {kind}, which ends at {most:,.6g}:\n    "
            + "\n    ".join(shown),
            hint="export in another type: --dtype bfloat16 or float32" if dtype == torch.float16 else None,
        )
    return converted


def _write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file, or shards and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, values in tensors.items():
        if shards[-1] and size + values.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = values.contiguous()
        size, total = size + values.nbytes, total + values.nbytes
    names = [_shard_name(index, len(shards)) for index in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(shard, folder / name, {"format": "pt"})
    if len(shards) > 1:
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        _write(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"


def _require_same(written: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """What was written is read by caramba's own loader as the same tensors, bit for bit."""
    left = dict(tensors)
    for name, values in written.tensors():
        expected = left.pop(name)
        assert values.dtype == expected.dtype and torch.equal(values, expected), f"{name} came back otherwise"
    assert not left, f"not written: {', '.join(left)}"
