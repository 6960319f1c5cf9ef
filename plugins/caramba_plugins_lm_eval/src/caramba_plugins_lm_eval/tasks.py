"""The metric ``lm_eval`` (config; light)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from caramba_plugins_eval.metric import Metric, Needed

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue

if TYPE_CHECKING:
    from caramba_plugins_eval.subject import Subject

__all__ = ["Tasks"]


@component
class Tasks(Metric):
    """Tasks of lm-eval, by their names there, over the model's own cache.

    Tasks of a folder of yours are found where the environment variable CARAMBA_LM_EVAL_TASKS names it: their files can
    run code, so no manifest does.
    """

    builds: ClassVar[str] = "caramba_plugins_lm_eval.harness:measure"
    needs: ClassVar[frozenset[Needed]] = frozenset({"tokenizer"})

    tasks: tuple[str, ...] = option(help="names of tasks")
    fewshot: int | None = option(default=None, help="examples before each question; as the task says", minimum=0)
    limit: int | None = option(default=None, help="documents of each task; all if not given", minimum=1)
    context: int | None = option(
        default=None,
        help="most tokens of a pass; what the model is made for if not given, 2048 where nothing says",
        unit="tokens",
        minimum=2,
    )
    extrapolate: bool = option(default=False, help="take a context beyond what the model is made for, too")

    def __attrs_post_init__(self) -> None:
        if not self.tasks:
            raise InvalidValue("tasks", "the list is empty", expected="names of tasks of lm-eval")

    def check(self, subject: Subject) -> None:
        """lm-eval must be there, and know the tasks."""
        from caramba_plugins_lm_eval.harness import find_tasks

        if self.context is not None:
            subject.require_context(self.called, self.context, extrapolate=self.extrapolate)
        find_tasks(self)
