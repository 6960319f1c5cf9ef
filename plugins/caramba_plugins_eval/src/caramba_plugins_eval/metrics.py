"""The metrics of this distribution (configs; light)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, product
from typing import TYPE_CHECKING, ClassVar, Literal

from caramba_core.components import component, option
from caramba_core.errors import InputError, InvalidValue
from caramba_plugins_eval.metric import Metric, Needed

if TYPE_CHECKING:
    from caramba_plugins_eval.subject import Subject

__all__ = ["Agreement", "Latency", "Memory", "Passkey", "Perplexity", "Position", "Retrieval", "Rolling"]

Task = Literal["single", "many", "variables", "counting"]


@component
class _AtOneContext(Metric):
    """A metric of windows of held-out tokens: as many tokens as ``eval:`` measures, in windows of its own."""

    needs: ClassVar[frozenset[Needed]] = frozenset({"data"})

    context: int | None = option(
        default=None, help="tokens per window; as eval: says if not given", unit="tokens", minimum=2
    )
    extrapolate: bool = option(default=False, help="measure beyond the context that the model is made for, too")

    def check(self, subject: Subject) -> None:
        """The model must be made for the context, and the text as long."""
        context = self.context or subject.evaluation.context
        subject.require_context(self.called, context, extrapolate=self.extrapolate)
        subject.require_windows(self.called, context)


@component
class _ByPosition(_AtOneContext):
    """A metric that looks at equal parts of a window."""

    buckets: int = option(default=8, help="equal parts of the window that are averaged over", minimum=1)

    def check(self, subject: Subject) -> None:
        """Every part must hold a token that is scored."""
        super().check(subject)
        context = self.context or subject.evaluation.context
        if self.buckets >= context:
            raise InputError(
                f"{self.called}: a window of {context} tokens has no {self.buckets} parts", hint="set buckets lower"
            )

    def parts(self, context: int) -> list[tuple[str, int, int]]:
        """Name, first and last position of each part of a window; position 0 is not scored."""
        ends = [round(at * (context - 1) / self.buckets) for at in range(self.buckets + 1)]
        return [(f"{first + 1}-{last}", first + 1, last) for first, last in pairwise(ends)]


@component
class _AtContexts(Metric):
    """A metric that is measured at several contexts."""

    contexts: tuple[int, ...] | None = option(
        default=None, help="tokens of context, each measured; that of eval: if not given", unit="tokens"
    )
    extrapolate: bool = option(default=False, help="measure beyond the context that the model is made for, too")

    def __attrs_post_init__(self) -> None:
        contexts = self.contexts
        if contexts is not None and (not contexts or min(contexts) < 2 or len(set(contexts)) < len(contexts)):
            raise InvalidValue("contexts", f"{list(contexts)} are no contexts", expected="different numbers from 2 on")

    def at(self, subject: Subject) -> tuple[int, ...]:
        """The contexts."""
        return self.contexts or (subject.evaluation.context,)

    def figures(self) -> tuple[str, ...] | None:
        """One for each context, where they are given."""
        return None if self.contexts is None else tuple(map(str, self.contexts))

    def check(self, subject: Subject) -> None:
        """The model must be made for every context."""
        for context in self.at(subject):
            subject.require_context(self.called, context, extrapolate=self.extrapolate)


@component
class Perplexity(_AtContexts):
    """Perplexity of held-out tokens in windows of each context: the same text, each token but a window's first."""

    builds: ClassVar[str] = "caramba_plugins_eval.likelihoods:perplexity"
    needs: ClassVar[frozenset[Needed]] = frozenset({"data"})

    def check(self, subject: Subject) -> None:
        """The text must be as long."""
        super().check(subject)
        for context in self.at(subject):
            subject.require_windows(self.called, context)


@component
class Rolling(_AtOneContext):
    """Perplexity per token, word and byte of all held-out tokens, each scored once, as lm-eval rolls over a text.

    Every token is predicted from at most ``context`` tokens before it.  A window begins with the last token of the one
    before it, the first with BOS, or the token that ends a text where there is none; the last window reaches back as
    far as ``context`` allows.
    """

    builds: ClassVar[str] = "caramba_plugins_eval.likelihoods:rolling"
    needs: ClassVar[frozenset[Needed]] = frozenset({"data", "tokenizer"})

    def figures(self) -> tuple[str, ...]:
        """Per token, word and byte."""
        return "token", "word", "byte", "bits_per_byte"

    def check(self, subject: Subject) -> None:
        """There must be a token that a text begins behind."""
        context = self.context or subject.evaluation.context
        subject.require_context(self.called, context, extrapolate=self.extrapolate)
        subject.begin_of_text(self.called)


@component
class Position(_ByPosition):
    """Perplexity by position in the window: how much a longer context helps."""

    builds: ClassVar[str] = "caramba_plugins_eval.likelihoods:position"

    def figures(self) -> tuple[str, ...] | None:
        """One for each part, where the context is given."""
        return None if self.context is None else tuple(name for name, _, _ in self.parts(self.context))


@component
class Agreement(_ByPosition):
    """KL(teacher || student) of the next token in nats, and how often both hold the same token the likeliest.

    And the perplexity over the teacher's, whose interval is that of the difference on the same tokens.
    """

    builds: ClassVar[str] = "caramba_plugins_eval.agreement:agreement"
    needs: ClassVar[frozenset[Needed]] = frozenset({"data", "teacher"})

    buckets: int = option(default=1, help="equal parts of the window that have figures of their own", minimum=1)

    def figures(self) -> tuple[str, ...] | None:
        """The divergence, the share and the ratio: of the window, and of its parts where the context is given."""
        if self.buckets == 1:
            return "kl", "top1", "ratio"
        if self.context is None:
            return None
        parts = ("", *(f".{name}" for name, _, _ in self.parts(self.context)))
        return tuple(f"{figure}{part}" for part in parts for figure in ("kl", "top1", "ratio"))


@component
class _Asking(_AtContexts):
    """A metric that asks about filler text: the answer is right if it is the greedy continuation, through the cache."""

    builds: ClassVar[str] = "caramba_plugins_eval.retrieval:retrieval"
    needs: ClassVar[frozenset[Needed]] = frozenset({"tokenizer"})

    prompts: int = option(default=20, help="prompts at each context, of each task", minimum=1)

    @property
    def asked(self) -> Mapping[str, str]:
        """The tasks, by what stands before the context in the names of their figures."""
        raise NotImplementedError(f"{type(self).__name__} does not define asked")

    def figures(self) -> tuple[str, ...] | None:
        """One for each task and context, where they are given."""
        return (
            None if self.contexts is None else tuple(f"{name}{at}" for name, at in product(self.asked, self.contexts))
        )

    def check(self, subject: Subject) -> None:
        """Introduction, what is hidden, and question must fit in every context."""
        super().check(subject)
        from caramba_plugins_eval.retrieval import Haystacks

        haystacks = Haystacks(subject.required_tokenizer(self.called), subject.seed)
        for (name, task), context in product(self.asked.items(), self.at(subject)):
            room = min(haystacks.room(task, context, index) for index in range(self.prompts))
            if room < 0:
                raise InputError(
                    f"{self.called}: prompts{name and f' of {task}'} do not fit in {context} tokens",
                    expected=f"{context - room} or more",
                )


@component
class Passkey(_Asking):
    """Share of numbers that are found in filler text of each context: prompts follow from the seed by a rule.

    A number of five digits stands at a random place; the model has it right if its greedy continuation of the question
    for it, through its cache, is the number.
    """

    asked: ClassVar[Mapping[str, str]] = {"": "passkey"}


@component
class Retrieval(_Asking):
    """Share of questions about filler text that are answered, in the manner of RULER; prompts follow from the seed.

    ``single`` hides one sentence with a number of five digits, ``many`` eight of them, one of which is asked for;
    ``variables`` asks for the number at the end of two assignments, beside another such chain; ``counting`` how often,
    from 1 to 9 times, a sentence stands there.  The answer is right if it is the greedy continuation, through the
    model's cache.
    """

    tasks: tuple[Task, ...] = option(
        default=("single", "many", "variables", "counting"), help="what is asked: single, many, variables, counting"
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InvalidValue("tasks", f"{list(self.tasks)} are no tasks", expected="different ones, at least one")

    @property
    def asked(self) -> Mapping[str, str]:
        """For what ``tasks`` say."""
        return {f"{task}.": task for task in self.tasks}


@component
class Latency(_AtContexts):
    """Tokens per second of prefill and of decoding one sequence behind each context; medians of several times."""

    builds: ClassVar[str] = "caramba_plugins_eval.speed:latency"

    steps: int = option(default=32, help="tokens decoded at a time", unit="tokens", minimum=1)
    repeats: int = option(default=3, help="times that each is measured", minimum=1)

    def figures(self) -> tuple[str, ...] | None:
        """Two for each context, where they are given."""
        if self.contexts is None:
            return None
        return tuple(f"{name}.{context}" for context in self.contexts for name in ("prefill", "decode"))


@component
class Memory(_AtContexts):
    """Bytes of the weights, of a sequence's cache at each context and, on CUDA, of the peak while it decodes there."""

    builds: ClassVar[str] = "caramba_plugins_eval.speed:memory"

    def figures(self) -> tuple[str, ...] | None:
        """The weights, and two for each context, where they are given."""
        if self.contexts is None:
            return None
        return ("weights", *(f"{name}.{context}" for context in self.contexts for name in ("cache", "peak")))
