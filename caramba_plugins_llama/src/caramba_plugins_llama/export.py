"""Writing a run's model as a Hugging Face folder, and reading it back before it appears."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from caramba_plugins_standard.loading import Checkpoint, find_loader, open_source
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.graph import Graph, local_name
from caramba_core.lowering import lower
from caramba_core.manifest import load_manifest
from caramba_core.plugins.registry import registry
from caramba_core.run.atomic import publish_folder
from caramba_core.run.checkpoint import load_tensors
from caramba_core.run.directory import RunDirectory
from caramba_plugins_llama.exporting import Exporter, ExportError, Folder
from caramba_plugins_llama.model_card import model_card

__all__ = ["Exported", "export"]

_SHARD_BYTES: Final = 5_000_000_000
_INDEX: Final = "model.safetensors.index.json"


@attrs.frozen(kw_only=True)
class Exported:
    """What was written: ``files`` by name, ``dtype`` of the weights, the ``exporter`` that described the folder."""

    path: Path
    exporter: str
    dtype: str
    parameters: int
    files: tuple[str, ...]


def export(run: Path, output: Path, *, dtype: str = "auto", origin: str | None = None) -> Exported:
    """Write the model of a run's last checkpoint to the folder ``output``, which must not exist.

    ``dtype`` names the type of the weights; ``auto`` is the widest that the checkpoint holds, so that nothing is lost.
    ``origin`` is the checkpoint whose tokenizer and settings go with the model: the run's teacher if not given.
    Nothing is left behind where anything fails.
    """
    _require_room(output)
    loaded, checkpoint = _opened(run)
    groups = loaded.manifest.groups  # the run's own, and those that it continues from
    group = next((one for one in groups if one.name == run.resolve().parent.name), groups[-1])
    graph = lower(group.model)
    source = origin if origin is not None else (group.teacher.source if group.teacher is not None else None)
    companions = _companions(source, Path() if origin is not None else loaded.folder)
    settings = json.loads(companions.pop("config.json", "{}"))
    model = loaded.resolved_group(group.name)["model"]
    name, folder = _described(graph, model, settings)
    tensors = load_tensors(checkpoint)
    kind = _dtype(tensors, dtype)
    summary = RunDirectory(run).summary() or {}
    with publish_folder(output) as scratch:
        config = {**folder.config, "torch_dtype": kind}
        _write(scratch / "config.json", json.dumps(config, indent=2) + "\n")
        for file, content in {**companions, **folder.files}.items():
            _write(scratch / file, content)
        keyed = ((folder.key(local_name(key)), value) for key, value in tensors.items())
        _write_weights(scratch, keyed, getattr(torch, kind))
        written = {path.name for path in scratch.iterdir()}
        tokenizer = not written.isdisjoint(("tokenizer.json", "tokenizer_config.json"))
        _write(scratch / "README.md", model_card(output.name, folder.usage, summary, config, tokenizer=tokenizer))
        _require_same(find_loader(scratch), tensors, getattr(torch, kind))
        files = tuple(sorted(path.name for path in scratch.iterdir()))
    count = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    return Exported(path=output, exporter=name, dtype=kind, parameters=count, files=files)


def _require_room(output: Path) -> None:
    """The folder can be made: nothing stands in its place, and what stands above it is a folder to write in."""
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} exists already", hint="name a folder that is not there yet")
    above = next(parent for parent in output.absolute().parents if parent.exists() or parent.is_symlink())
    if not above.is_dir():
        raise InputError(f"{output} cannot be made: {above} is no folder", hint="name a folder elsewhere")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{output} cannot be made: {above} is not yours to write in", hint="name a folder elsewhere")


def _opened(run: Path) -> tuple[Any, Path]:
    """A run's manifest and its last checkpoint."""
    if not (run / "manifest.yml").is_file():
        raise InputError(f"{run} is not a run's folder", expected="a folder such as runs/NAME/GROUP/RUN")
    checkpoints = RunDirectory(run).checkpoints()
    if not checkpoints:
        raise InputError(
            f"{run} holds no checkpoint", hint="a run that evaluates or generates makes none: name the one before"
        )
    return load_manifest(run / "manifest.yml"), checkpoints[-1]


def _companions(source: str | None, folder: Path) -> dict[str, str]:
    """The files that go with a checkpoint's weights: its configuration, tokenizer, settings of generation."""
    if source is None:
        return {}
    try:
        checkpoint: Checkpoint = open_source(source, folder)
    except InputError as error:
        raise InputError(
            f"the tokenizer and settings come from {source}, which cannot be opened:\n  {error}",
            hint="name the checkpoint that the run started from: --origin FILE, FOLDER or hf://org/repo",
        ) from error
    return dict(checkpoint.companions())


def _described(graph: Graph, model: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, Folder]:
    """The folder, by the first exporter that can express the model."""
    plugins = registry()
    reasons = []
    for entry in plugins.entries("exporter"):
        exporter: type[Exporter] = plugins.load(entry)
        try:
            return entry.name, exporter.describe(graph, model, settings)
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


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """One file, or shards and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, value in tensors:
        stored = value.to(dtype) if value.is_floating_point() else value
        width = stored.numel() * stored.element_size()
        if shards[-1] and size + width > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = stored.contiguous()
        size, total = size + width, total + width
    names = [_shard_name(index, len(shards)) for index in range(len(shards))]
    try:
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, folder / name, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's writer tells the system's error in words alone
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(folder)) from error
    if len(shards) > 1:
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        _write(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"


def _require_same(written: Checkpoint, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """What was written is read by caramba's own loader as the same tensors, bit for bit."""
    left = {local_name(name): value for name, value in tensors.items()}
    for name, value in written.tensors():
        expected = left.pop(name)
        expected = expected.to(dtype) if expected.is_floating_point() else expected
        assert value.dtype == expected.dtype and torch.equal(value, expected), f"{name} came back otherwise"
    assert not left, f"not written: {', '.join(left)}"
