"""``upcycle.blockwise`` and ``upcycle.global``: the strategies that learn from a teacher (configs; light)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from caramba_plugins_standard.training import Strategy, block_count

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue
from caramba_core.sites import Site

if TYPE_CHECKING:
    from caramba_core.graph import Graph

__all__ = ["Blockwise", "Global", "HiddenStates", "KeptLogits"]


@component
class Blockwise(Strategy):
    """Normalised squared error of each converted attention's output, after its output projection."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.strategy_runners:BlockwiseRunner"
    takes_documents: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    whole_model: ClassVar[bool] = False

    inputs: Literal["teacher", "student"] = option(
        default="teacher", help="whose hidden states the student's attentions read while they learn"
    )

    def check(self, graph: Graph, sites: Sequence[Site], trained: frozenset[str]) -> None:
        """It trains converted attentions, and nothing else."""
        if not sites:
            said = "there is nothing to train: teacher and student have the same attentions"
            raise InvalidValue("train", said, within=("strategy",))
        if others := sorted(trained - {site.name for site in sites}):
            raise InvalidValue(
                "train",
                f"upcycle.blockwise trains converted attentions only, and this names {others[0]} "
                f"(and {len(others) - 1} more)",
                expected="trains: [attention], or patterns of converted attentions",
                within=("trains",),
            )


@component
class HiddenStates:
    """Squared distance to the teacher's state behind each block, over that state's square: per token, then averaged."""

    weight: float = option(default=1.0, help="of the mean over blocks and tokens, beside the KL divergence", above=0.0)
    blocks: tuple[int, ...] | None = option(
        default=None, help="numbers of the blocks, counted from 0 in the order of execution; all if not given"
    )

    def __attrs_post_init__(self) -> None:
        numbers = self.blocks
        if numbers is not None and (not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers)):
            raise InvalidValue("blocks", f"{list(numbers)} are no blocks", expected="different numbers from 0 on")


@component
class KeptLogits:
    """The teacher's largest log-probabilities of each token, in a file beside the run: later epochs need no teacher.

    The divergence is over these tokens and all others together as one class, in the first epoch too.
    """

    top: int = option(default=64, help="log-probabilities kept per token", minimum=1)

    def bytes_per_token(self, vocabulary: int) -> int:
        """Of ids, float16 log-probabilities, and the float32 one of the rest."""
        return self.top * (2 if vocabulary <= 1 << 16 else 4) + 2 * self.top + 4


@component
class Global(Strategy):
    """KL divergence from the teacher over the full vocabulary; reverse KL, cross entropy, hidden states beside it."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.strategy_runners:GlobalRunner"
    takes_documents: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    temperature: float = option(default=1.0, help="divides both logits before the softmax", above=0.0)
    reverse: float = option(
        default=0.0,
        help="weight of KL(student || teacher) in the divergence; KL(teacher || student) has what is left to 1",
        minimum=0.0,
        maximum=1.0,
    )
    cross_entropy: float = option(default=0.0, help="weight of the cross entropy with the text itself", minimum=0.0)
    logit_rows: int = option(default=512, help="tokens whose logits are held at once", unit="tokens", minimum=1)
    hidden: HiddenStates | None = option(default=None, help="match the teacher's hidden states behind blocks as well")

    keep_logits: KeptLogits | None = option(
        default=None, help="keep the teacher's largest log-probabilities in a file, for epochs behind the first"
    )

    def __attrs_post_init__(self) -> None:
        if self.keep_logits is not None and self.hidden is not None:
            raise InvalidValue("keep_logits", "hidden states need the teacher in every epoch", hint="leave one out")

    @property
    def takes_graphs(self) -> bool:
        """Not with a file."""
        return self.keep_logits is None

    @property
    def takes_processes(self) -> bool:
        """Not with a file."""
        return self.keep_logits is None

    def check(self, graph: Graph, sites: Sequence[Site], trained: frozenset[str]) -> None:
        """What it asks of the teacher must be there."""
        kept = None if self.keep_logits is None else self.keep_logits.top
        if kept is not None and kept >= graph.vocab_size:
            said, most = f"{kept} of {graph.vocab_size} tokens leaves no rest", f"at most {graph.vocab_size - 1}"
            raise InvalidValue("train", said, expected=most, within=("strategy", "keep_logits", "top"))
        there = block_count(graph)
        if self.hidden is not None and max(self.hidden.blocks or (0,)) >= there:
            said = f"the model has {there} blocks, counted from 0: repetitions of a topology"
            place = ("strategy", "hidden") if self.hidden.blocks is None else ("strategy", "hidden", "blocks")
            raise InvalidValue("train", said, hint="name some of them, or leave hidden out", within=place)

    def file_bytes(self, tokens: int, vocab_size: int) -> int:
        """Of what is kept of the teacher."""
        return 0 if self.keep_logits is None else tokens * self.keep_logits.bytes_per_token(vocab_size)

    def kept_states(self, blocks: int) -> int:
        """The teacher's."""
        if self.hidden is None:
            return 0
        return blocks if self.hidden.blocks is None else len(self.hidden.blocks)
