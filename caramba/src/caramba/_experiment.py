"""A manifest that has been read, and what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caramba_plugins_report.records import run_info
from caramba_plugins_standard.opening import is_run

from caramba._display import Printed, notebook_console
from caramba._runs import Runs
from caramba_core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from caramba_core.manifest.load import Loaded
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.plan import Plan

__all__ = ["Experiment", "Picture", "Plans", "load_experiment"]


class Experiment:
    """A manifest that has been read and checked; :func:`caramba.load` makes it.

    Attributes:
        name: the manifest's name, and of its folder under ``runs/``.
        groups: names of its groups; empty for a manifest that describes a model alone.
        manifest: the resolved manifest as plain data.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @property
    def name(self) -> str:
        """The manifest's name."""
        return self._loaded.manifest.name

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group.name for group in self._loaded.manifest.groups)

    @property
    def manifest(self) -> dict[str, Any]:
        """The resolved manifest: composed, variables filled in."""
        return self._loaded.document

    def __repr__(self) -> str:
        groups = self._loaded.manifest.groups
        words = [f"{group.name} ({', '.join(run.id for run in group.runs)})" for group in groups]
        return f"<caramba.Experiment {self.name}: {'; '.join(words) or 'a model, without runs'}>"

    # ------------------------------------------------------------------------------------------------ before running

    def plan(self, group: str | None = None, *, context: int | None = None) -> Plans:
        """What model and runs take: parameters, operations, cached bytes and memory, without torch.

        Args:
            group: one group's plan; those of all groups if not given.
            context: tokens that operations and cache are stated for; the longest sequence of the group's runs if not
                given.

        Returns:
            The plans; printed, tables. Each is a :class:`caramba_core.plan.Plan`: ``plan()[0].model.total.parameters``.
        """
        from caramba_core.plan import plan_manifest

        return Plans(plan_manifest(self._loaded, group=self._known(group), context=context))

    def graph(self, group: str | None = None) -> Picture:
        """A picture of a group's model: shown in notebooks, ``.save("model.svg")`` writes it (or .mmd, .html)."""
        return Picture(self.plan(self._single(group))[0])

    # ------------------------------------------------------------------------------------------------ torch

    def build(
        self, group: str | None = None, *, device: str = "auto", dtype: str = "float32", seed: int = 0
    ) -> LanguageModel:
        """The model of a group as an ordinary ``torch.nn.Module``, its weights drawn from ``seed``.

        Int64 token ids ``[B, T]`` in, logits ``[B, T, V]`` out.  A student that starts from its teacher's weights is
        the result of a run: :meth:`run`, then :func:`caramba.open`.

        Args:
            group: may be left out where the manifest has one group, or none.
            device: ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``cuda`` or ``mps``.
            dtype: type of the weights.
            seed: each weight depends on its name and this number alone.
        """
        from caramba_core.lowered import lower_all
        from caramba_core.nn.build import build
        from caramba_core.run.device import pick_device, torch_dtype

        name = self._single(group)
        own, graphs = lower_all(self._loaded)
        graph = own if name is None else graphs[name]
        return build(graph, device=pick_device(device), dtype=torch_dtype(dtype), seed=seed).eval()

    def run(
        self,
        group: str | None = None,
        run: str | None = None,
        *,
        resume: bool = False,
        output: str | PathLike[str] = "runs",
        minutes: float | None = None,
    ) -> Runs:
        """Do the runs that have no result yet, with progress: what ``caramba run`` does.

        Args:
            group: only this group.
            run: only this run of each group.
            resume: go on with runs that stopped midway, from their last checkpoint.
            output: the folder that takes the runs, as ``NAME/GROUP/RUN``.
            minutes: end after this time, between two steps or batches; ``resume`` goes on.

        Returns:
            The table of the chosen runs.

        Raises:
            CarambaError: of the kind that says what went wrong; see :mod:`caramba_core.errors`.
        """
        from caramba_terminal.reporter import Reporter

        from caramba_core.plugins.registry import registry
        from caramba_core.run.experiment import Experiment

        reporter = Reporter(notebook_console())
        experiment = Experiment(self._loaded, group=group, run=run, output=Path(output), reporter=reporter)
        if not registry().hooks.follow(load=lambda: self._loaded):
            experiment.complete(resume=resume, minutes=minutes)
            experiment.verify()
        folders = (experiment.directory(one, each).path for one, each in experiment.chosen)
        return Runs(map(run_info, filter(is_run, folders)))

    # ------------------------------------------------------------------------------------------------ helpers

    def _known(self, group: str | None) -> str | None:
        if group is not None and group not in self.groups:
            raise InputError(
                f"{self.name} has no group {group!r}", expected=", ".join(self.groups) or "no group: there is none"
            )
        return group

    def _single(self, group: str | None) -> str | None:
        """The group that is meant; ``None`` for a manifest without groups."""
        if group is None and len(self.groups) > 1:
            raise InputError(f"{self.name} has several groups", expected=f"one of: {', '.join(self.groups)}")
        return self._known(group if group is not None else next(iter(self.groups), None))


class Plans(Printed, tuple["Plan", ...]):
    """Plans of groups; printed, tables."""

    def _print(self, console: Console) -> None:
        from caramba_plugins_draw.terminal import show

        show(self, console=console)


class Picture:
    """A picture of a planned model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __repr__(self) -> str:
        return f"<caramba picture of {self._plan.title}>"

    def _repr_svg_(self) -> str:
        from caramba_plugins_draw import picture

        return picture(self._plan, ".svg")

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture; the suffix says how: ``.svg``, ``.mmd`` (Mermaid) or ``.html``."""
        from caramba_plugins_draw import write

        write(self._plan, Path(path))


def load_experiment(manifest: str | PathLike[str], overrides: Mapping[str, object] | Sequence[str]) -> Experiment:
    """The experiment of a manifest; see :func:`caramba.load`."""
    from caramba_core.manifest.load import load_manifest

    return Experiment(load_manifest(str(manifest), overrides=list(_texts(overrides)), fetch=True))


def _texts(overrides: Mapping[str, object] | Sequence[str]) -> Iterable[str]:
    """Overrides as the command line writes them; JSON is YAML."""
    if isinstance(overrides, Mapping):
        return [f"{path}={json.dumps(value, default=str, ensure_ascii=False)}" for path, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else overrides
