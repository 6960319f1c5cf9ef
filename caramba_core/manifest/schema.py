"""What a manifest says, typed.  Reading, errors and positions are the business of the modules beside this one."""

from __future__ import annotations

from typing import Literal

from caramba_core.components import Model, component, option
from caramba_core.modes import NAME, NAME_FORM, Data, Evaluation, Run, Teacher

__all__ = ["Group", "Manifest"]


@component
class Group:
    """Runs over one model, teacher and data.  ``vars`` and ``extends`` are resolved before this is made."""

    name: str = option(help="name of the group, and of its folder", pattern=NAME, form=NAME_FORM)
    teacher: Teacher | None = option(default=None, help="the pretrained model")
    data: Data | None = option(default=None, help="the tokens")
    eval: Evaluation | None = option(default=None, help="how its runs are measured")
    model: Model = option(help="the manifest's model under this group's variables")
    runs: tuple[Run, ...] = option(help="the runs, in order")

    def evaluation(self, run: Run) -> Evaluation:
        """How a run of the group measures."""
        return run.eval or self.eval or Evaluation()


@component
class Manifest:
    """A whole manifest, resolved: one model a group."""

    version: Literal[1] = option(help="version of the manifest language")
    name: str = option(help="name of the experiment, and of its folder under runs/", pattern=NAME, form=NAME_FORM)
    requires: tuple[str, ...] = option(default=(), help="distributions that must be installed, with version ranges")
    model: Model = option(help="the model under the manifest's own variables")
    groups: tuple[Group, ...] = option(default=(), help="collections of runs")

    def parent_of(self, group: Group, run: Run) -> tuple[Group, Run] | None:
        """The run that this one continues, with its group: one it names (``RUN``, ``GROUP/RUN``), or the one before."""
        if run.from_ is None:
            place = [other.id for other in group.runs].index(run.id)
            return (group, group.runs[place - 1]) if place else None
        name, _, id_ = run.from_.rpartition("/")
        owner = next((other for other in self.groups if other.name == name), group)
        return owner, next(other for other in owner.runs if other.id == id_)

    def chain(self, group: Group) -> list[Group]:
        """A group, and those that its runs continue from."""
        found = [group]
        for one in found:  # it grows while it is gone through
            parents = (self.parent_of(one, run) for run in one.runs)
            found += [parent[0] for parent in parents if parent is not None and parent[0] not in found]
        return found
