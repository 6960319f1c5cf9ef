"""Running mode ``eval``: metrics of a run's student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from caramba_core.modes import Results
from caramba_core.places import regular
from caramba_core.run.atomic import write_json
from caramba_core.run.context import RunContext
from caramba_plugins_eval.mode import Evaluate
from caramba_plugins_eval.opening import longest_of, texts_of
from caramba_plugins_eval.results import measure_all
from caramba_plugins_eval.subject import Subject

__all__ = ["EvaluateRunner"]


class EvaluateRunner:
    """Gives ``metrics``; perplexity as ``eval:`` says is measured around every run.

    Figures are kept behind each metric, in ``evaluation/metrics.json``, so that a call that ends midway is gone on
    with behind the last.
    """

    def __init__(self, run: Evaluate, context: RunContext) -> None:
        self.metrics = run.metrics
        self.context = context
        self._kept = context.directory.path / "evaluation" / "metrics.json"

    def run(self) -> Results:
        """Measure."""
        if not self.metrics:
            return Results()
        context, source = self.context, self.context.shared.source
        heldout = context.shared.tokens("heldout")
        subject = Subject(
            name=f"run {context.run.id}",
            evaluation=context.evaluation,
            tokenizer=context.tokenizer,
            longest=None if source is None else longest_of(getattr(source, "checkpoint", None)),
            device=context.device,
            seed=context.seed,
            reporter=context.reporter,
            computing=context.autocast,
            load=lambda: context.student,
            load_teacher=None if source is None else lambda: context.teacher,
            open_tokens=lambda: heldout,
            texts=texts_of(heldout),
        )
        known = self._known()
        context.reporter.stage(f"measure {context.name}", ", ".join(metric.called for metric in self.metrics))

        def keep(key: str, figures: Mapping[str, Any]) -> None:
            known[key] = dict(figures)
            write_json(self._kept, known)
            context.limit.worked()
            if len(known) < len(self.metrics):
                context.pause_if_due()

        with context.limit.signals.deferred():
            return Results(entries={"metrics": measure_all(self.metrics, subject, known=known, between=keep)})

    def _known(self) -> dict[str, Any]:
        """What an earlier call of this run has measured."""
        self._kept.parent.mkdir(exist_ok=True)
        try:
            found = json.loads(regular(self._kept).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
