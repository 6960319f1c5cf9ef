"""Opening runs and checkpoints: from a folder to a model with its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from caramba_core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from caramba_core.components import Storage
    from caramba_core.datasets import Tokens
    from caramba_core.graph import Graph
    from caramba_core.manifest.load import Loaded
    from caramba_core.manifest.schema import Group
    from caramba_core.modes import Evaluation, Run
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.teachers import Tokenizer
    from caramba_plugins_standard.loading import Checkpoint

__all__ = ["OpenedRun", "cache_named", "find_runs", "is_run", "load_checkpoint", "open_checkpoint", "open_run"]


_DEEPEST: Final = 4
"""Levels from a project's folder down to its runs: ``runs/NAME/GROUP/RUN``."""


def find_runs(folder: Path) -> list[Path]:
    """The folders of runs at or up to four levels under ``folder``, in the order of their names."""
    return sorted(_runs_within(folder, _DEEPEST))


def cache_named(name: str) -> Storage:
    """How the cache with this name stores keys and values; ``full`` keeps what was computed.

    Raises :class:`InputError` where no installed storage has the name.
    """
    from caramba_core.plugins.registry import registry

    known = {entry.name: entry for entry in registry().entries("storage")}
    if name not in known:
        raise InputError(f"there is no cache {name!r}", expected=", ".join(known))
    storage: Storage = registry().load(known[name])()
    return storage


def is_run(folder: Path) -> bool:
    """Whether a run lives in this folder."""
    return (folder / "manifest.yml").exists() and (folder / "state.json").exists()


def _runs_within(folder: Path, levels: int) -> Iterator[Path]:
    """Runs up to so many levels down; a run's own folder is not looked into, nor what is hidden or may not be read."""
    if is_run(folder):
        yield folder
    elif levels:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _runs_within(folder / entry.name, levels - 1)


@attrs.frozen(kw_only=True)
class OpenedRun:
    """A run with a checkpoint: ``manifest`` as it was run, ``checkpoint`` the folder of the weights."""

    path: Path
    loaded: Loaded
    group: Group
    run: Run
    checkpoint: Path
    summary: dict[str, Any] | None

    @property
    def evaluation(self) -> Evaluation:
        """How the run measured its perplexity."""
        return self.group.evaluation(self.run)

    @property
    def dtype(self) -> str:
        """The type that the run computed in."""
        return self.run.computation[1]

    def teacher(self) -> Checkpoint | None:
        """The teacher's checkpoint, if the run has one; raises :class:`InputError` where it is no longer there."""
        if self.group.teacher is None:
            return None
        from caramba_plugins_standard.loading import open_source

        return open_source(self.group.teacher.source, self.loaded.folder, sha256=self.group.teacher.sha256)

    def model(self, device: str, dtype: str | None = None) -> LanguageModel:
        """The model with the weights of the run's checkpoint, each in the type that the run held it in.

        With ``dtype`` all of them are in that one.
        """
        from caramba_core.graph import trained_nodes
        from caramba_core.lowered import lower_group
        from caramba_core.run.device import pick_device, torch_dtype
        from caramba_core.run.student import assemble

        graph = lower_group(self.loaded, self.group)
        return assemble(
            graph,
            teacher=None,
            tensors=self.tensors(),
            trained=trained_nodes(graph, self.run.trains) if dtype is None else frozenset(),
            device=pick_device(device),
            dtype=torch_dtype(self._held if dtype is None else dtype),
            seed=self.run.seed,
        )

    @property
    def _held(self) -> str:
        """The type of weights that do not train."""
        return "float32" if self.group.teacher is None else self.group.teacher.dtype

    def tensors(self) -> Mapping[str, Tensor]:
        """The model's tensors of the checkpoint, by graph name; of one that holds adapters alone, the sums."""
        import torch

        from caramba_core.graph import trained_nodes
        from caramba_core.lowered import lower_group
        from caramba_core.run.checkpoint import model_tensors
        from caramba_core.run.device import torch_dtype
        from caramba_core.run.student import assemble
        from caramba_plugins_standard.training.lora import summed

        def begin() -> Mapping[str, Tensor]:
            graph, teacher = lower_group(self.loaded, self.group), self.teacher()
            return model_tensors(
                assemble(
                    graph,
                    teacher=None if teacher is None else load_checkpoint(teacher, "cpu", self._held),
                    tensors=None,
                    trained=trained_nodes(graph, self.run.trains),
                    device=torch.device("cpu"),
                    dtype=torch_dtype(self._held),
                    seed=self.run.seed,
                )
            )

        return summed(self.checkpoint, begin, torch_dtype(self._held))

    def heldout_tokens(self, graph: Graph, tokenizer: Tokenizer | None) -> Tokens:
        """The tokens that the run was measured on."""
        from caramba_core.run.context import check_tokens

        data = self.group.data
        if data is None or data.heldout is None:
            raise InputError(f"the run {self.path} has no data.heldout to measure on", hint="give a text or token ids")
        return check_tokens(data.heldout.open(self.loaded.folder, tokenizer), graph, tokenizer)


def open_run(path: Path, step: int | None) -> OpenedRun:
    """The run of a folder, with its last checkpoint or that of ``step``; no torch."""
    from caramba_core.manifest.load import load_manifest
    from caramba_core.run.directory import RunDirectory

    directory = RunDirectory(path)
    state = directory.state()
    assert state is not None
    checkpoints = {int(found.name.removeprefix("step_")): found for found in directory.checkpoints()}
    if not checkpoints:
        raise InputError(
            f"the run {path} holds no checkpoint (it is {state.status})",
            hint="runs that only evaluate or generate make none: open the run that they continue",
        )
    if step is not None and step not in checkpoints:
        steps = ", ".join(map(str, checkpoints))
        raise InputError(f"the run {path} holds no checkpoint of step {step}", expected=f"one of: {steps}")
    if step is None and state.status != "done":
        raise InputError(
            f"the run {path} has not finished: it is {state.status} at step {state.step}",
            hint=f"finish it (caramba run ... --resume), or open its last checkpoint with step={max(checkpoints)} "
            f"(--step {max(checkpoints)})",
        )
    loaded = load_manifest(path / "manifest.yml")
    group_name, run_id = path.resolve().parts[-2:]
    group = next(group for group in loaded.manifest.groups if group.name == group_name)
    return OpenedRun(
        path=path,
        loaded=loaded,
        group=group,
        run=next(run for run in group.runs if run.id == run_id),
        checkpoint=checkpoints[max(checkpoints) if step is None else step],
        summary=directory.summary(),
    )


def open_checkpoint(path: str) -> Checkpoint:
    """The pretrained checkpoint of a file, folder or address that is no run's folder, its headers read.

    A folder that is neither is told what runs it holds (:class:`InputError`).
    """
    from caramba_plugins_standard.loading import open_source

    folder = Path(path)
    inside = [] if "://" in path else [str(run) for run in find_runs(folder)]
    if inside:
        shown = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
        raise InputError(f"{folder} is not a run's folder, but holds some", expected=f"one of: {shown}")
    try:
        return open_source(path, Path())
    except InputError as error:
        if not folder.exists():
            raise
        raise InputError(
            f"{path} is not a run's folder, and cannot be opened as a checkpoint: {error.message}",
            expected=error.expected or "a folder such as runs/NAME/GROUP/RUN, or a checkpoint",
            hint=error.hint or "caramba.runs() lists the runs that there are",
        ) from error


def load_checkpoint(checkpoint: Checkpoint, device: str, dtype: str) -> LanguageModel:
    """The model of a pretrained checkpoint, with its weights."""
    from caramba_core.lowering import lower
    from caramba_core.manifest.structure import structure_model
    from caramba_core.run.device import pick_device, torch_dtype
    from caramba_plugins_standard.loading import PretrainedModel

    graph = lower(structure_model(checkpoint.model(), origin=str(checkpoint.path)))
    return PretrainedModel(checkpoint, graph, str(checkpoint.path)).load(pick_device(device), torch_dtype(dtype))
