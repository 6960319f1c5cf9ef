"""From what a command names to what metrics measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from caramba_plugins_standard.loading import Checkpoint, lower_checkpoint, open_source
from caramba_plugins_standard.opening import cache_named, is_run, load_checkpoint, open_checkpoint, open_run
from caramba_plugins_standard.several_texts import SeveralTexts
from caramba_terminal.reporter import Reporter

from caramba_core.components import evolve
from caramba_core.datasets import Dataset, Tokens
from caramba_core.errors import Faults, InputError, InvalidValue
from caramba_core.graph import Graph
from caramba_core.lowered import lower_group
from caramba_core.manifest.structure import Structurer
from caramba_core.modes import Evaluation
from caramba_core.nn.language_model import LanguageModel
from caramba_core.places import expanded, named
from caramba_core.plugins.registry import registry
from caramba_core.run.context import check_tokens
from caramba_core.run.device import autocast, pick_device
from caramba_core.teachers import Tokenizer
from caramba_plugins_eval.subject import Subject

__all__ = ["Asked", "Opened", "longest_of", "open_subject", "texts_of"]

_WINDOWS = 32
"""Windows of a text that are measured if not told how many."""


@attrs.frozen(kw_only=True)
class Asked:
    """How a model is opened and measured; what is ``None`` is as the run or checkpoint says.

    ``data`` are texts or arrays of token ids, ``teacher`` and ``tokenizer`` name checkpoints, ``cache`` a storage or
    ``full``.  ``dtype`` is the type that a run computes in, and that a checkpoint's weights are held in.
    """

    data: tuple[str, ...] = ()
    teacher: str | None = None
    tokenizer: str | None = None
    step: int | None = None
    device: str = "auto"
    dtype: str | None = None
    cache: str | None = None
    context: int | None = None
    windows: int | None = None
    batch_size: int | None = None
    seed: int = 0


@attrs.frozen(kw_only=True)
class Opened:
    """A subject, the type that it computes in, and of a run its folder and the step of its checkpoint."""

    subject: Subject
    dtype: str
    run: Path | None = None
    step: int | None = None


@attrs.frozen(kw_only=True)
class _Model:
    """A run or a checkpoint; ``carrier`` is the checkpoint that tokenizer and configuration come from."""

    graph: Graph
    load: Callable[[], LanguageModel]
    dtype: str
    evaluation: Evaluation
    carrier: Checkpoint | None
    teacher: Callable[[], LanguageModel] | None = None
    heldout: Callable[[Tokenizer | None], Tokens] | None = None
    run: Path | None = None
    step: int | None = None


def longest_of(checkpoint: Checkpoint | None) -> int | None:
    """Tokens of context that a checkpoint's configuration says its model is made for."""
    said = None if checkpoint is None else checkpoint.companions().get("config.json")
    found = None if said is None else json.loads(said).get("max_position_embeddings")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def texts_of(heldout: Tokens) -> Mapping[str, Tokens]:
    """Held-out tokens by the names of their texts, where there are several."""
    return heldout.texts if isinstance(heldout, SeveralTexts) and len(heldout.texts) > 1 else {}


def open_subject(source: str, asked: Asked, reporter: Reporter) -> Opened:
    """A run's folder or a checkpoint, ready to be measured: headers are read, weights are not.

    Raises :class:`InputError` where there is none, or where what is asked does not go with it.
    """
    here, device = expanded(source), pick_device(asked.device)
    found = _of_run(here, asked, device) if is_run(here) else _of_checkpoint(source, asked, device)
    carrier = found.carrier if asked.tokenizer is None else open_source(asked.tokenizer, Path())
    tokenizer = None if carrier is None else carrier.tokenizer()
    teacher, tokens = found.teacher, None
    if asked.teacher is not None:
        checkpoint = open_checkpoint(asked.teacher)
        teacher = lambda: load_checkpoint(checkpoint, device.type, asked.dtype or "float32")  # noqa: E731
    texts: dict[str, Tokens] = {}
    for data in asked.data:
        name = expanded(data).stem
        if name in (*texts, "mean", "worst"):
            raise InputError(f"--data {data}: there is a text {name} already", hint="give the file another name")
        texts[name] = check_tokens(_dataset(data).open(Path(), tokenizer), found.graph, tokenizer)
    if texts:
        tokens = min(texts.values(), key=lambda one: len(one.ids))
    elif found.heldout is not None:
        tokens = found.heldout(tokenizer)
        texts.update(texts_of(tokens))

    @contextmanager
    def computing() -> Iterator[None]:
        with torch.no_grad(), autocast(device, found.dtype):
            yield

    subject = Subject(
        name=source,
        evaluation=_evaluation(found.evaluation, asked, tokens),
        tokenizer=tokenizer,
        longest=longest_of(found.carrier),
        device=device,
        seed=asked.seed,
        reporter=reporter,
        computing=computing,
        load=found.load,
        load_teacher=teacher,
        open_tokens=None if tokens is None else lambda: tokens,
        texts=texts if len(texts) > 1 else {},
    )
    return Opened(subject=subject, dtype=found.dtype, run=found.run, step=found.step)


def _of_run(folder: Path, asked: Asked, device: torch.device) -> _Model:
    opened = open_run(folder, asked.step)
    checkpoint, group = opened.teacher(), opened.group
    graph = lower_group(opened.loaded, group)

    def teacher() -> LanguageModel:
        assert checkpoint is not None and group.teacher is not None
        return load_checkpoint(checkpoint, device.type, group.teacher.dtype)

    has_heldout = group.data is not None and group.data.heldout is not None
    return _Model(
        graph=graph,
        load=lambda: opened.model(device.type),
        dtype=asked.dtype or opened.dtype,
        evaluation=opened.evaluation,
        carrier=checkpoint,
        teacher=None if checkpoint is None else teacher,
        heldout=(lambda tokenizer: opened.heldout_tokens(graph, tokenizer)) if has_heldout else None,
        run=folder,
        step=int(opened.checkpoint.name.removeprefix("step_")),
    )


def _of_checkpoint(source: str, asked: Asked, device: torch.device) -> _Model:
    if asked.step is not None:
        raise InputError(
            f"{source} is no run's folder, and has no checkpoint of step {asked.step}", hint="leave --step out"
        )
    checkpoint = open_checkpoint(source if "://" in source else str(expanded(source)))
    dtype = asked.dtype or "float32"
    return _Model(
        graph=lower_checkpoint(checkpoint),
        load=lambda: load_checkpoint(checkpoint, device.type, dtype),
        dtype=dtype,
        evaluation=Evaluation(),
        carrier=checkpoint,
    )


def _dataset(data: str) -> Dataset:
    """What a file stands for, as in a manifest."""
    if not named(expanded(data)):
        raise InputError(f"{data} does not exist", expected="a text (.txt) or an array of token ids (.npy)")
    try:
        dataset: Dataset = Structurer(registry()).structure(str(expanded(data)), Dataset)
    except Faults as error:
        raise InputError(f"{data}: {error}", expected="a text (.txt) or an array of token ids (.npy)") from None
    return dataset


def _evaluation(own: Evaluation, asked: Asked, tokens: Tokens | None) -> Evaluation:
    """How it is measured; of texts that are named, as many windows as the shortest has, up to 32, if nothing says."""
    changes: dict[str, Any] = {
        name: value for name in ("context", "windows", "batch_size") if (value := getattr(asked, name)) is not None
    }
    if asked.cache is not None:
        changes["cache"] = cache_named(asked.cache)
    try:
        own = evolve(own, **changes)
        if asked.data and asked.windows is None and tokens is not None:
            own = evolve(own, windows=max(1, min(_WINDOWS, len(tokens.ids) // own.context)))
    except InvalidValue as error:
        raise InputError(str(error), expected=error.expected, hint=error.hint) from None
    return own
