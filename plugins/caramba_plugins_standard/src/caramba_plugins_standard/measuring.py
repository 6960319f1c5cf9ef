"""Perplexity of teacher, start and end of a run, measured once and handed on along a group."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from caramba_terminal.limit import Paused

from caramba_core.components import Attention, Storage, evolve
from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.modes import Evaluation
from caramba_core.nn.cache import Cache
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plan import longest_context
from caramba_core.run.atomic import write_text
from caramba_core.run.context import RunContext
from caramba_plugins_standard.marks import is_marked
from caramba_plugins_standard.measurement import Measurement, paired_difference
from caramba_plugins_standard.mixtures import MixedTokens
from caramba_plugins_standard.modes import blamed_on
from caramba_plugins_standard.perplexity import measure, require_enough

__all__ = ["Perplexities", "cache_bytes", "measure_run", "measure_step", "measured_in"]


class Perplexities:
    """The evaluator ``perplexity``: of the teacher, and of the student at its start and its end.

    Teacher and start are taken from the run's own folder on resuming, or from the run that it continues, where they
    were measured on the very same tokens in the same way; others are dropped, and measured anew.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.folder = context.directory.path / "evaluation"
        self.measured: dict[str, Measurement] = {}

    @classmethod
    def check(cls, tokens: Tokens, settings: Evaluation) -> None:
        """There must be enough held-out tokens, of one source."""
        if isinstance(tokens, MixedTokens):
            raise InputError(
                "data.heldout is a mixture: perplexity is measured from the start of one text",
                hint="measure on one of its parts; other groups may measure on others",
            )
        if is_marked(tokens):
            raise InputError(
                "data.heldout keeps documents apart, or holds chats; perplexity is measured over windows as they are",
                hint="take a text or an array without documents: true",
            )
        with blamed_on("context" if len(tokens.ids) < settings.context else "windows"):
            require_enough(tokens, settings)

    def before(self) -> Iterator[tuple[str, float]]:
        """Measure teacher and start; gives each perplexity that was not known yet."""
        context = self.context
        if context.group.data is None or context.group.data.heldout is None:
            return
        self._drop_others()
        self._take_over()
        if context.shared.source is not None:
            yield from self._measure("teacher", lambda: context.teacher)
        if not context.run.starts_from_teacher:
            yield from self._measure("start", context.start)
        elif context.evaluation.cache is None:
            self._keep("start", self.measured["teacher"])
        else:
            yield from self._measure("start", lambda: context.teacher)

    def after(self) -> Iterator[tuple[str, float]]:
        """Measure the end, which is the start where the run's mode changes no weights."""
        if self.measured and self.context.run.changes_weights:
            (self.folder / "end.npy").unlink(missing_ok=True)  # of an attempt that ended before its result was known
            yield from self._measure("end", lambda: self.context.student, part=_step_name(self.context.step))
            self._drop_parts()
        elif self.measured:
            self.measured["end"] = self.measured["start"]

    def entries(self) -> dict[str, Any]:
        """What the summary says of all of them."""
        entries = self._cache_entries()
        if not self.measured:
            return entries
        entries["perplexity"] = {name: m.perplexity for name, m in self.measured.items()}
        entries["perplexity_standard_error"] = {name: m.standard_error for name, m in self.measured.items()}
        entries["scored_tokens"] = self.measured["end"].tokens
        if "teacher" in self.measured:
            entries["perplexity_ratio"] = {
                name: self.measured[name].perplexity / self.measured["teacher"].perplexity for name in ("start", "end")
            }
        change, error = paired_difference(self.measured["end"], self.measured["start"])
        entries["log_perplexity_change"] = {"mean": change, "paired_standard_error": error}
        return entries

    def _measure(
        self, name: str, model: Callable[[], LanguageModel], *, part: str | None = None
    ) -> Iterator[tuple[str, float]]:
        """Measure a model unless it is known; ``part`` is the name under which the first windows of it are kept."""
        path = self.folder / f"{name}.npy"
        if path.exists():
            self.measured[name] = Measurement.load(path)
            _part(self.context, part or name).unlink(missing_ok=True)
            return
        settings = self.context.evaluation
        if name == "teacher":  # what students are compared with: its cache keeps what was computed
            settings = evolve(settings, cache=None)
        title = f"perplexity of {name}"
        result = measure_run(self.context, model(), settings=settings, title=title, part=part or name)
        self._keep(name, result)
        _part(self.context, part or name).unlink(missing_ok=True)
        yield f"perplexity_{name}", result.perplexity

    def _keep(self, name: str, result: Measurement) -> None:
        result.save(self.folder / f"{name}.npy")
        self.measured[name] = result

    def _drop_others(self) -> None:
        """Remove measurements of other tokens, in another way or of other steps, and note how this run measures."""
        note, settings = self.folder / "settings.json", _settings(self.context)
        if not note.is_file() or note.read_bytes() != settings.encode():
            if not self.context.run.starts_from_teacher:
                self.context.check_start()  # before anything is removed
            if any(self.folder.glob("*.npy")):
                what = "measured on other tokens or in another way before, and so measured anew"
                self.context.reporter.line(f"{self.context.run.id}: {what}")
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        write_text(note, settings)
        self._drop_parts(but=None if self.context.resume_from is None else _step_name(self.context.step))

    def _drop_parts(self, but: str | None = None) -> None:
        for path in self.folder.glob("step_*.part.npy"):
            if but is None or path != _part(self.context, but):
                path.unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Copy the previous run's teacher and end (this run's start) where they measured the same."""
        parent = self.context.parent
        if parent is None:
            return
        theirs = parent.parent.parent / "evaluation"
        note = theirs / "settings.json"
        if not note.is_file() or note.read_bytes() != _settings(self.context).encode():
            return
        for source, target in (("teacher", "teacher"), ("end", "start")):
            if (theirs / f"{source}.npy").exists() and not (self.folder / f"{target}.npy").exists():
                Measurement.load(theirs / f"{source}.npy").save(self.folder / f"{target}.npy")

    def _cache_entries(self) -> dict[str, Any]:
        """Bytes that decoding keeps, as the group's plan states them: counted from the tensors of caches."""
        context, source = self.context, self.context.shared.source
        dtype = "float32" if context.group.teacher is None else context.group.teacher.dtype
        tokens = longest_context(context.group)
        found = {} if source is None else {"teacher": cache_bytes(source.graph, tokens, dtype)}
        found["student"] = cache_bytes(context.graph, tokens, dtype, context.evaluation.cache)
        return {
            "cache_bytes_per_token": {name: per_token for name, (per_token, _) in found.items()},
            "cache_bytes_once": {name: once for name, (_, once) in found.items()},
            "cache_context": tokens,
            "cache_dtype": dtype,
        }


def measure_step(context: RunContext, step: int) -> Measurement:
    """Measure the student behind a step of its training; raises :class:`~caramba_terminal.limit.Paused` midway."""
    return measure_run(context, title=f"perplexity at step {step}", part=_step_name(step))


def measure_run(
    context: RunContext,
    model: LanguageModel | None = None,
    *,
    settings: Evaluation | None = None,
    title: str = "perplexity",
    part: str | None = None,
) -> Measurement:
    """Likelihoods of a run's held-out tokens under its student, or another model, as ``eval:`` says or ``settings``.

    Where the call is to end before the last window, those that were measured are kept under the name ``part``, to go on
    from, and :class:`~caramba_terminal.limit.Paused` is raised.
    """
    model, settings = model or context.student, settings or context.evaluation
    kept = None if part is None else _part(context, part)
    known = Measurement.load(kept) if kept is not None and kept.exists() else None
    done = 0 if known is None else len(known.nll)
    was_training = model.training
    model.eval()

    def stops() -> bool:
        context.limit.worked()
        return kept is not None and context.limit.reason is not None

    try:
        with (
            context.autocast(),
            context.limit.signals.deferred(),
            context.reporter.bar(title, settings.windows * settings.context, done=done * settings.context) as bar,
        ):
            tokens = context.shared.tokens("heldout")
            result = measure(model, tokens, settings, known=known, progress=bar.advance, stops=stops)
            if len(result.nll) == settings.windows:
                bar.note(f"{result.perplexity:.3f}")
    finally:
        model.train(was_training)
    if len(result.nll) < settings.windows:
        assert kept is not None
        result.save(kept)
        raise Paused(f"{context.limit.reason}, {len(result.nll)} of {settings.windows} windows of the {title} done")
    return result


def _settings(context: RunContext) -> str:
    """What must be equal for two measurements to be of the same tokens in the same way."""
    settings = context.evaluation
    ids = context.shared.tokens("heldout").read(0, settings.windows * settings.context)
    digest = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
    described: dict[str, Any] = {"tokens": digest, "windows": settings.windows, "context": settings.context}
    attentions = ((name, node.config) for name, node in context.graph.attentions().items())
    own = {name: repr(it.cache) for name, it in attentions if isinstance(it, Attention) and it.cache is not None}
    if settings.cache is not None or own:
        described["cache"] = own if settings.cache is None else repr(settings.cache)
    return json.dumps({**described, "dtype": context.dtype_name, "device": context.device.type})


def measured_in(context: RunContext) -> str:
    """A short name of the held-out tokens and the way in which a run measures: figures of one are comparable."""
    return hashlib.sha256(_settings(context).encode()).hexdigest()[:8]


def _step_name(step: int) -> str:
    return f"step_{step:06d}"


def _part(context: RunContext, name: str) -> Path:
    """Where the first windows of a measurement are kept."""
    return context.directory.path / "evaluation" / f"{name}.part.npy"


def cache_bytes(graph: Graph, tokens: int, dtype: str, storage: Storage | None = None) -> tuple[float, int]:
    """Bytes that a cache of one sequence of ``tokens`` tokens holds per token, and those that it holds once.

    They are counted from its tensors, whose values are never allocated.
    """
    once, whole = (
        Cache(graph, batch=1, dtype=getattr(torch, dtype), device="meta", capacity=capacity, storage=storage).bytes
        for capacity in (0, tokens)
    )
    return (whole - once) / tokens, once
