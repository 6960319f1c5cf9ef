"""What metrics measure: a model, and what it is measured on and beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs
from caramba_terminal.reporter import Bar, Reporter

from caramba_core.components import Storage, evolve
from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.modes import Evaluation
from caramba_core.teachers import Tokenizer

if TYPE_CHECKING:
    import torch

    from caramba_core.nn.language_model import LanguageModel
    from caramba_plugins_eval.metric import Metric

__all__ = ["Subject"]


@attrs.define(kw_only=True, slots=False)
class Subject:
    """A model that is measured.  Models and tokens are read when a metric first asks for them.

    Attributes:
        name: what messages call it.
        evaluation: tokens per window, how many windows, windows per pass, and how the model's cache stores.
        longest: tokens of context that the model is made for, where its configuration says so.
        texts: held-out tokens by name, where there are several; metrics that read tokens are measured on each.
        text: the name of the one that is measured on now.
        computing: no gradients, and the number type of the computation, for as long as it is entered.
    """

    name: str
    evaluation: Evaluation
    tokenizer: Tokenizer | None
    longest: int | None
    device: torch.device
    seed: int
    reporter: Reporter
    computing: Callable[[], AbstractContextManager[Any]]
    load: Callable[[], LanguageModel]
    load_teacher: Callable[[], LanguageModel] | None
    open_tokens: Callable[[], Tokens] | None
    texts: Mapping[str, Tokens] = attrs.field(factory=dict)
    text: str | None = None

    @cached_property
    def model(self) -> LanguageModel:
        """The model itself, in evaluation mode."""
        return self.load().eval()

    @cached_property
    def teacher(self) -> LanguageModel:
        """What it is compared with; metrics that read it say so in ``needs``."""
        assert self.load_teacher is not None, "the metric needs a teacher"
        return self.load_teacher().eval()

    @cached_property
    def tokens(self) -> Tokens:
        """Held-out tokens; metrics that read them say so in ``needs``."""
        assert self.open_tokens is not None, "the metric needs data"
        return self.open_tokens()

    def on(self, text: str) -> Subject:
        """The same models on one of several texts."""
        teacher = None if self.load_teacher is None else lambda: self.teacher
        opening: dict[str, Any] = {
            "load": lambda: self.model,
            "load_teacher": teacher,
            "open_tokens": lambda: self.texts[text],
        }
        return attrs.evolve(self, **opening, texts={}, text=text)

    def bar(self, called: str, total: int) -> AbstractContextManager[Bar]:
        """Progress of a metric, with the text that it is on."""
        return self.reporter.bar(called if self.text is None else f"{called} of {self.text}", total)

    @property
    def storage(self) -> Storage | None:
        """How the model's cache stores keys and values, instead of what each attention says."""
        return self.evaluation.cache

    def settings(self, context: int) -> Evaluation:
        """How ``context`` tokens at a time are measured: on as many tokens as ``evaluation`` says, one window at least.

        A pass has no more tokens than one of ``evaluation``, or one window.
        """
        own = self.evaluation
        return evolve(
            own,
            context=context,
            windows=max(1, own.windows * own.context // context),
            batch_size=max(1, own.batch_size * own.context // context),
        )

    # ------------------------------------------------------------------------------------------------ what must hold

    def require(self, metric: Metric) -> None:
        """Raise :class:`InputError` where this has not what a metric needs, or does not do for it."""
        called = metric.called
        if "data" in metric.needs and self.open_tokens is None:
            raise InputError(f"{called} is measured on a text, and there is none", hint="name one: --data FILE")
        if "teacher" in metric.needs and self.load_teacher is None:
            raise InputError(
                f"{called} compares with a teacher, and {self.name} has none",
                hint="name one: --teacher FILE, FOLDER or hf://org/repo",
            )
        if "tokenizer" in metric.needs:
            self.required_tokenizer(called)
        metric.check(self)

    def required_tokenizer(self, called: str) -> Tokenizer:
        """The tokenizer; :class:`InputError` where there is none."""
        if self.tokenizer is None:
            raise InputError(
                f"{called} needs a tokenizer, and {self.name} carries none",
                hint="name a checkpoint that carries it: --tokenizer FILE, FOLDER or hf://org/repo",
            )
        return self.tokenizer

    def require_context(self, called: str, context: int, *, extrapolate: bool = False) -> None:
        """Raise :class:`InputError` for more tokens than the model is made for."""
        if self.longest is not None and context > self.longest and not extrapolate:
            raise InputError(
                f"{called}: a context of {context:,} is beyond the {self.longest:,} that {self.name} is made for",
                expected=f"at most {self.longest:,}",
                hint="extrapolate: true of the metric measures beyond it",
            )

    def require_windows(self, called: str, context: int) -> None:
        """Raise :class:`InputError` where there are fewer tokens than are measured."""
        windows, found = self.settings(context).windows, len(self.tokens.ids)
        if found < windows * context:
            raise InputError(
                f"{called}: {self.tokens.origin} has {found:,} tokens, too few to measure on",
                expected=f"{windows * context:,} tokens ({windows} windows of {context:,})",
                hint="measure fewer windows, a shorter context, or a longer text",
            )

    def begin_of_text(self, called: str) -> int:
        """The id that a whole text is scored behind: BOS, or the one that ends a text."""
        tokenizer = self.required_tokenizer(called)
        found = tokenizer.end_of_text if tokenizer.bos is None else tokenizer.bos
        if found is None:
            raise InputError(f"{called}: the tokenizer has no token that a text begins behind, neither BOS nor an end")
        return found
