"""What is exported: the model of a run's last checkpoint, or that of a checkpoint as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.loading import Checkpoint, cached_source, fetch_source, find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_standard.opening import OpenedRun

from caramba_core.errors import CarambaError, InputError
from caramba_core.graph import Graph, local_name
from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.modes import Evaluation
from caramba_core.nn.build import build
from caramba_core.nn.fitting import require_fit
from caramba_core.places import expanded
from caramba_core.run.checkpoint import read_state
from caramba_core.run.directory import RunDirectory
from caramba_plugins_llama.exporting import Original
from caramba_plugins_llama.json_file import parse_object
from caramba_plugins_llama.model_summary import checked_summary
from caramba_plugins_llama.provenance import Licence, Teacher, data_lines, licence_of

__all__ = ["ExportSource", "open_export_source"]

_TOKENIZER: Final = "tokenizer_config.json"
_ENDED: Final = {"failed": "failed", "interrupted": "was interrupted", "running": "has not ended"}
_EXPECTED: Final = "a folder such as runs/NAME/GROUP/RUN, or a checkpoint: a file, a folder or hf://org/repo"


@attrs.frozen(kw_only=True)
class ExportSource(Original):
    """A model to write, and what its folder holds and says beside.

    ``companions`` are files of the checkpoint that tokenizer and settings come from; ``left_out`` is code that these
    files name and that is not among them.  Of a run there are its ``summary``, where it has ended, what became of it
    where it is ``unfinished``, its ``data`` and the ``context`` of its measurements.  ``unchanged`` is the model of a
    checkpoint as it is; its ``teacher`` is that checkpoint.  ``origin`` is the one that the companions are of.
    """

    companions: Mapping[str, str]
    teacher: Teacher | None
    unchanged: bool
    summary: Mapping[str, Any] = attrs.field(factory=dict)
    unfinished: str | None = None
    left_out: tuple[str, ...] = ()
    data: Mapping[str, str] = attrs.field(factory=dict)
    context: int | None = None
    origin: Checkpoint | None = None


def open_export_source(source: str, origin: str | None) -> ExportSource:
    """The model of a run's folder or of a checkpoint; tokenizer and settings from ``origin`` where it is given."""
    here = expanded(source)
    if (here / "manifest.yml").exists():
        return _of_run(here, origin)
    if "://" not in source and not here.exists():
        raise InputError(f"{source} does not exist", expected=_EXPECTED)
    return _of_checkpoint(source, origin)


def _of_run(run: Path, origin: str | None) -> ExportSource:
    directory = RunDirectory(run)
    checkpoints = directory.checkpoints()
    if not checkpoints:
        raise InputError(
            f"{run} holds no checkpoint", hint="a run that evaluates or generates makes none: name the one before"
        )
    loaded = load_manifest(run / "manifest.yml")
    groups = loaded.manifest.groups  # the run's own, and those that it continues from
    group = next((one for one in groups if one.name == run.resolve().parent.name), groups[-1])
    written = loaded.resolved_group(group.name)
    graph = lower(group.model)
    source, teacher, companions = None if group.teacher is None else group.teacher.source, None, dict[str, str]()
    checkpoint: Checkpoint | None = None
    if origin is not None:
        checkpoint = _opened(origin, Path())
        companions = _companions(checkpoint, origin, graph, read_state(checkpoints[-1]).get("tokenizer"))
        teacher = None if source is None else Teacher(source=source, licence=_known_licence(source, loaded.folder))
    elif source is not None:
        checkpoint = _opened(source, loaded.folder)
        companions = _companions(checkpoint, source, graph, None)
        teacher = Teacher(source=_shown(source, loaded.folder), licence=licence_of(source, checkpoint))
    own = next((one for one in group.runs if one.id == run.resolve().name), group.runs[-1])
    opened = OpenedRun(path=run, loaded=loaded, group=group, run=own, checkpoint=checkpoints[-1], summary=None)
    tensors = {local_name(name): values for name, values in opened.tensors().items()}
    require_fit(checkpoints[-1], graph, ((name, name, tuple(values.shape)) for name, values in tensors.items()))
    state, saved = directory.state(), read_state(checkpoints[-1])
    if state is not None and saved["run"] != state.identity:
        problem = f"the checkpoint {checkpoints[-1]} is of another run than {run}"
        raise InputError(problem, hint="remove it, or name the run that it is of")
    unfinished = None
    if state is not None and state.status != "done":
        why = f": {state.error.splitlines()[0]}" if state.error else ""
        unfinished = (
            f"the run {_ENDED[state.status]}{why}; the weights are those of its checkpoint at step {saved['step']}"
        )
    summary = {} if unfinished else checked_summary(run / "summary.json", directory.summary() or {})
    if summary and summary["run"] not in {one.id for one in group.runs}:
        raise InputError(
            f"{run / 'summary.json'} is of the run {summary['run']}, which its manifest does not have",
            hint="put its own back, or remove it: the card then tells no figures",
        )
    measured = next((one.eval for one in group.runs if one.id == summary.get("run")), None)
    return ExportSource(
        graph=graph,
        model=written["model"],
        tensors=tensors,
        settings=json.loads(companions.pop("config.json", "{}")),
        **_without_code(companions),
        teacher=teacher,
        unchanged=False,
        summary=summary,
        unfinished=unfinished,
        data=data_lines(written["groups"][0]),
        context=(measured or group.eval or Evaluation()).context,
        origin=checkpoint,
    )


def _of_checkpoint(source: str, origin: str | None) -> ExportSource:
    try:
        fetched = fetch_source(source, Path())
        checkpoint = find_loader(fetched.path)
    except InputError as error:
        raise InputError(
            f"{source} is not a run's folder, and not a checkpoint that can be read:\n  {error}", expected=_EXPECTED
        ) from error
    pinned = fetched.pinned if "://" in source else source
    graph = lower_checkpoint(checkpoint)
    load_weights(build(graph, device="meta"), checkpoint)  # everything fits, and nothing is NaN or infinite
    tokenizer = checkpoint if origin is None else _opened(origin, Path())
    companions = _companions(tokenizer, origin or source, graph, None)
    settings = json.loads(companions.pop("config.json", "{}"))
    return ExportSource(
        graph=graph,
        model=checkpoint.model(),
        tensors=dict(checkpoint.tensors()),
        settings=settings,
        **_without_code(companions),
        teacher=Teacher(source=pinned, licence=licence_of(pinned, checkpoint)),
        unchanged=True,
        origin=tokenizer,
    )


def _opened(source: str, folder: Path) -> Checkpoint:
    """The checkpoint that tokenizer and settings come from."""
    try:
        return find_loader(fetch_source(source, folder).path)
    except InputError as error:
        raise InputError(
            f"the tokenizer and settings come from {source}, which cannot be opened:\n  {error}",
            hint="name the checkpoint that the run started from: --origin FILE, FOLDER or hf://org/repo",
        ) from error


def _shown(source: str, folder: Path) -> str:
    """A source as it is named from here."""
    return source if "://" in source else str(folder / source)


def _known_licence(source: str, folder: Path) -> Licence:
    """The licence of a teacher that is not opened otherwise; unknown where it is not on this machine."""
    try:
        path = cached_source(source, folder)
        return Licence() if path is None else licence_of(source, find_loader(path))
    except CarambaError:
        return Licence()


def _companions(checkpoint: Checkpoint, source: str, graph: Graph, identity: str | None) -> dict[str, str]:
    """The files that go with a checkpoint's weights, once their tokenizer is known to fit the model.

    ``identity`` is that of the tokenizer which the run's tokens were made with, where it must be the same.
    """
    found = dict(checkpoint.companions())
    files = {name: parse_object(text.encode(), f"{source}: {name}") for name, text in found.items() if "json" in name}
    ids, rows = _token_ids(files), graph.vocab_size
    own_rows = files.get("config.json", {}).get("vocab_size")
    if ids > rows and own_rows != rows:  # a checkpoint that has this fault of its own keeps it
        raise InputError(
            f"the tokenizer of {source} does not fit the model: it has {ids:,} ids, and the model {rows:,} rows of "
            "embeddings",
            hint="name the checkpoint that the model's tokens were made with: --origin FILE, FOLDER or hf://org/repo",
        )
    if identity is not None and "tokenizer.json" in found:
        tokenizer = checkpoint.tokenizer()
        if tokenizer is not None and tokenizer.identity != identity:
            raise InputError(
                f"the tokenizer of {source} (identity {tokenizer.identity[:12]}) is not the one that the run's tokens "
                f"were made with (identity {identity[:12]})",
                hint="name the checkpoint that the run started from: --origin FILE, FOLDER or hf://org/repo",
            )
    return found


def _without_code(companions: Mapping[str, str]) -> dict[str, Any]:
    """The files without what they say of code that does not come along, and the names of that code."""
    settings = json.loads(companions.get(_TOKENIZER, "{}"))
    named = settings.pop("auto_map", None)
    if not named:
        return {"companions": companions}
    classes = [part for value in named.values() for part in (value if isinstance(value, list) else [value]) if part]
    kept = {**companions, _TOKENIZER: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"}
    return {"companions": kept, "left_out": tuple(dict.fromkeys(map(str, classes)))}


def _token_ids(files: Mapping[str, Mapping[str, Any]]) -> int:
    """How many ids a folder's tokenizer has: the largest one, added and special tokens included, and one more."""
    described = files.get("tokenizer.json", {})
    vocabulary = (described.get("model") or {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token.get("id", -1) for token in described.get("added_tokens") or ()]
    ids += map(int, files.get("tokenizer_config.json", {}).get("added_tokens_decoder") or ())
    for name in ("config.json", "generation_config.json"):
        for role in ("bos", "eos", "pad"):
            special = files.get(name, {}).get(f"{role}_token_id")
            ids += special if isinstance(special, list) else [-1 if special is None else special]
    return 1 + max(ids, default=-1)
