"""What a manifest says, typed.  Reading, errors and positions are the business of the modules beside this one."""

from __future__ import annotations

from typing import Literal

from caramba_core.component import Model, component, option
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


@component
class Manifest:
    """A whole manifest, resolved: one model a group."""

    version: Literal[1] = option(help="version of the manifest language")
    name: str = option(help="name of the experiment, and of its folder under runs/", pattern=NAME, form=NAME_FORM)
    requires: tuple[str, ...] = option(default=(), help="distributions that must be installed, with version ranges")
    model: Model = option(help="the model under the manifest's own variables")
    groups: tuple[Group, ...] = option(default=(), help="collections of runs")
