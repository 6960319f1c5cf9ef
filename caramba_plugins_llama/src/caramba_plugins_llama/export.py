"""Writing a model as a Hugging Face folder or a GGUF file, and reading it back before it appears."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from caramba_plugins_standard.loading import Checkpoint, find_loader
from torch import Tensor

from caramba_core import __version__
from caramba_core.errors import InputError, PluginError
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import registry
from caramba_core.run.atomic import publish_file, publish_folder
from caramba_core.run.checkpoint import save_tensors
from caramba_plugins_llama.export_source import ExportSource, open_export_source
from caramba_plugins_llama.exporting import CODE, Exporter, ExportError, Folder
from caramba_plugins_llama.gguf_vocabulary import vocabulary_of
from caramba_plugins_llama.gguf_writing import QUANTS, gguf_model, write_gguf
from caramba_plugins_llama.model_card import model_card

__all__ = ["Exported", "export", "formats"]

_SHARD_BYTES: Final = 5_000_000_000
_INDEX: Final = "model.safetensors.index.json"
_QUANT_OF: Final = {kind: quant for quant, kind in QUANTS.items() if quant != "q8_0"}
_SHOWN: Final = 8
"""Lines of an error."""
_LONGEST_NAME: Final = 200
"""Bytes of a folder's name: file systems take 255, of which the name that it is written under needs some."""
_SHOWN_NAME: Final = 60


GGUF: Final = "gguf"
"""The format that is no folder: what an exporter says of transformers' own classes, in a file of llama.cpp's."""


@attrs.frozen(kw_only=True)
class Exported:
    """What was written: the ``form``, ``files`` by name, ``dtype`` of the weights, the ``exporter`` that described it.

    ``others`` are the formats that the same model can be written in, ``checked`` says what ``check`` found, and
    ``unfinished`` of a run that has no result what became of it.
    """

    path: Path
    form: str
    exporter: str
    dtype: str
    parameters: int
    files: tuple[str, ...]
    others: tuple[str, ...] = ()
    checked: str | None = None
    unfinished: str | None = None


def export(
    source: str | Path,
    output: Path,
    *,
    form: str | None = None,
    dtype: str = "auto",
    quant: str | None = None,
    origin: str | None = None,
    check: str | None = None,
) -> Exported:
    """Write a model to ``output``, which must not exist: a Hugging Face folder, or a file for ``form="gguf"``.

    ``source`` is a run's folder, whose last checkpoint is written, or a checkpoint: a file, a folder or an address.
    ``form`` is one that :func:`formats` lists; the first that an exporter can write if not given.  ``dtype`` names the
    type of the weights; ``auto`` is the widest that the checkpoint holds, so that nothing is lost.  ``quant`` is the
    type of a GGUF file's matrices.  ``origin`` is the checkpoint whose tokenizer and settings go with the model: the
    run's teacher, or the checkpoint itself, if not given.  ``check`` is a text whose logits are compared with those of
    the model as it was (:func:`~caramba_plugins_llama.checking.check_logits`).  Nothing is left behind where anything
    fails.
    """
    _require_room(output)
    _require_settings(form, dtype, quant, output)
    found = open_export_source(str(source), origin)
    chosen, others = _described(found, form)
    write = _write_file if chosen.form == GGUF else _write_folder
    tensors = found.tensors if chosen.folder.rewrite is None else chosen.folder.rewrite(found.tensors)
    kind = QUANTS[quant] if quant is not None else _dtype(tensors, dtype)
    tensors = _converted(tensors, getattr(torch, kind))
    files, checked = write(output, chosen, found, tensors, quant or _QUANT_OF.get(kind, kind), check)
    return Exported(
        path=output,
        form=chosen.form,
        exporter=chosen.entry.name,
        dtype=quant or kind,
        parameters=sum(values.numel() for values in tensors.values() if values.is_floating_point()),
        files=files,
        others=others,
        checked=checked,
        unfinished=found.unfinished,
    )


def _write_folder(
    output: Path, chosen: _Described, found: ExportSource, tensors: Mapping[str, Tensor], quant: str, check: str | None
) -> tuple[tuple[str, ...], str | None]:
    """The folder; the names in it, and what a check says."""
    folder, kind = chosen.folder, QUANTS[quant]
    config = {**folder.config, "torch_dtype": kind}
    shipped = not {"tokenizer.json", "tokenizer_config.json"}.isdisjoint((*found.companions, *folder.files))
    exporter = f"{chosen.entry.distribution} {chosen.entry.version}"
    card = model_card(output.name, folder, found, config, tokenizer=shipped, exporter=exporter)
    with publish_folder(output) as scratch:
        _write(scratch / "config.json", json.dumps(config, indent=2) + "\n")
        for file, content in {**found.companions, **folder.files}.items():
            _write(scratch / file, content)
        _write_weights(scratch, folder.stored(tensors))
        _write(scratch / "README.md", card)
        try:
            _require_same(find_loader(scratch), tensors)
        except InputError as error:
            said = error.message.replace(str(scratch), str(output))
            raise PluginError(
                f"what {exporter} says of --as {chosen.form} cannot be read back: {said}",
                hint="a loader that reads the folder must be installed with its exporter",
            ) from error
        checked = None if check is None else _checked(check, scratch, chosen.folder, found, kind)
        return tuple(sorted(path.name for path in scratch.iterdir())), checked


def _write_file(
    output: Path, chosen: _Described, found: ExportSource, tensors: Mapping[str, Tensor], quant: str, check: str | None
) -> tuple[tuple[str, ...], str | None]:
    """The GGUF file; its name, and what a check says."""
    metadata = {
        **_general(output, found),
        **vocabulary_of(found.origin, found.companions, chosen.folder.config["vocab_size"]),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(output) as file:
        scratch = Path(str(file.name))
        write_gguf(scratch, gguf_model(chosen.folder), tensors, metadata, quant)
        kind = quant if quant == "q8_0" else QUANTS[quant]
        checked = None if check is None else _checked(check, scratch, chosen.folder, found, kind)
    return (output.name,), checked


def _checked(text: str, written: Path, folder: Folder, found: ExportSource, kind: str) -> str:
    from caramba_plugins_llama.checking import check_logits

    context = int(folder.config.get("max_position_embeddings", 512))
    return check_logits(text, written, found.graph, found.tensors, kind=kind, code=bool(folder.files), context=context)


def _general(output: Path, found: ExportSource) -> dict[str, Any]:
    """What a GGUF file says of where it comes from."""
    said = {"general.name": output.stem, "general.type": "model"}
    said["general.description"] = f"Exported by caramba {__version__}"
    if found.teacher is not None:
        stated = found.teacher.licence.metadata
        names = {"license": "license", "license_name": "license.name", "license_link": "license.link"}
        said |= {f"general.{name}": stated[key] for key, name in names.items() if key in stated}
        if found.teacher.repository is not None:
            said["general.base_model.0.name"] = found.teacher.repository
            said["general.base_model.0.repo_url"] = f"https://huggingface.co/{found.teacher.repository}"
    return said


def _require_settings(form: str | None, dtype: str, quant: str | None, output: Path) -> None:
    """Options that go together."""
    if form is not None and form not in formats():
        raise InputError(f"there is no format {form!r}", expected=", ".join(formats()))
    if quant is not None and form != GGUF:
        raise InputError("--quant is the type of a GGUF file's matrices", hint="write it with --as gguf")
    if quant is not None and dtype != "auto":
        raise InputError("--quant and --dtype both name the type of the weights", hint="name one of them")
    if (form == GGUF) != (output.suffix == ".gguf"):
        wanted = "a name that ends in .gguf" if form == GGUF else "a folder, whose name does not end in .gguf"
        raise InputError(f"--as {form or 'a folder'} writes no {output.name}", expected=wanted)


def formats() -> tuple[str, ...]:
    """What ``--as`` may name."""
    plugins = registry()
    found = {form for entry in plugins.entries("exporter") for form in plugins.load(entry).formats()}
    return (*sorted(found), GGUF)


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


@attrs.frozen(kw_only=True)
class _Described:
    """A model in one of the formats, and whose exporter says so."""

    entry: ComponentEntry
    form: str
    folder: Folder


def _described(source: ExportSource, wanted: str | None) -> tuple[_Described, tuple[str, ...]]:
    """The model in the wanted format, or the first that an exporter can write; and the other formats it has."""
    found: list[_Described] = []
    reasons = []
    for each in _candidates(source):
        if isinstance(each, _Described):
            found.append(each)
        elif wanted is None or each[0] == wanted:
            reasons.append(each[1])
    chosen = next((one for one in found if wanted in (None, one.form)), None)
    if chosen is None:
        named = "" if wanted is None else f" as {wanted}"
        raise InputError(
            f"no installed exporter can write this model{named}:\n  " + "\n  ".join(reasons or ["there is none"]),
            hint="an attention's exporter comes with the attention's own distribution",
        )
    return chosen, tuple(dict.fromkeys(one.form for one in found if one.form != chosen.form))


def _candidates(source: ExportSource) -> Iterator[_Described | tuple[str, str]]:
    """The model in every format, or the format and why it has none."""
    plugins = registry()
    for entry in plugins.entries("exporter"):
        exporter: type[Exporter] = plugins.load(entry)
        for form in exporter.formats():
            try:
                folder = exporter.describe(form, source)
                yield _Described(entry=entry, form=form, folder=folder)
            except ExportError as error:
                yield form, f"{entry.name}: {error}"
                if form != CODE:
                    yield GGUF, f"{entry.name}, {form}: {error}"
                continue
            if form == CODE:
                yield GGUF, f"{entry.name}: a folder that brings its own code has no words in GGUF"
                continue
            try:
                gguf_model(folder)
                yield _Described(entry=entry, form=GGUF, folder=folder)
            except ExportError as error:
                yield GGUF, f"{entry.name}, {form}: {error}"


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
