"""What one pass of a training step learns from: tokens, which of them are predicted, and where documents begin."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.marks import BEGINS, GIVEN, IDS
from caramba_plugins_standard.parallel.team import Team
from caramba_plugins_standard.training.documents import packed_frame
from caramba_plugins_standard.training.rounding import RoundingCache

__all__ = ["NO_TARGET", "Batch", "batches_of"]

NO_TARGET = -100
"""What ``torch.nn.functional.cross_entropy`` leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``tokens``, int64 ``[B, T + 1]``: the model reads the first ``T``, the last is only predicted.

    ``begins``, bool ``[B, T + 1]``, are tokens that begin a document; ``learned``, bool ``[B, T]``, says of which of
    the first ``T`` the next one is predicted.  Without them a sequence is one document, all of which is learned.
    ``step_targets`` is how many tokens the ``passes`` of the step predict together, in all processes of the ``team``;
    ``None`` for all of them.  With ``rounding``, the model that it is of reads keys and values rounded.
    """

    tokens: Tensor
    begins: Tensor | None = None
    learned: Tensor | None = None
    passes: int = 1
    step_targets: Tensor | None = None
    team: Team = field(default_factory=Team)
    rounding: RoundingCache | None = None

    @property
    def inputs(self) -> Tensor:
        """The tokens that the model reads: int64 ``[B, T]``."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """The token behind each that is read, int64 ``[B, T]``; :data:`NO_TARGET` where none is learned."""
        following = self.tokens[:, 1:]
        return following if self.learned is None else following.masked_fill(~self.learned, NO_TARGET)

    def frame(self, model: LanguageModel, *, taps: Taps | None = None) -> Frame:
        """The frame that keeps the documents of :attr:`inputs` apart in ``model``, and rounds where it is to."""
        begins = None if self.begins is None else self.begins[:, :-1]
        rounds = self.rounding is not None and self.rounding.graph is model.graph
        return packed_frame(model, self.inputs, begins, cache=self.rounding if rounds else None, taps=taps)

    def mean(self, total: Tensor) -> Tensor:
        """A sum over the targets of this pass as what it adds to a step's loss, the mean over its passes.

        Each target of a step counts the same, whichever pass it is in: so the sum is divided by the targets that a pass
        of this step has on average.
        """
        if self.step_targets is None:
            return total / self.inputs.numel()
        parts = self.passes * self.team.size
        return (total if parts == 1 else total * parts) / self.step_targets

    def of_team(self, x: Tensor) -> Tensor:
        """The mean of ``x`` over the processes that share the batch, without a gradient; ``x`` itself in one process.

        What a step divides by, if it depends on the batch, has to be of the whole of it: then steps do not depend on
        how many processes there are.
        """
        return self.team.mean(x)


def batches_of(
    words: Tensor, *, marked: bool, team: Team | None = None, rounding: RoundingCache | None = None
) -> list[Batch]:
    """The passes of a step: int64 ``[passes, B, T + 1]`` of ids, ``marked`` or plain; this process's of a ``team``.

    A step in which nothing is to be predicted has a loss of 0.
    """
    team = team or Team()
    if not marked:
        return [Batch(tokens=tokens, passes=len(words), team=team, rounding=rounding) for tokens in words]
    tokens, begins = words & IDS, (words & BEGINS) != 0
    learned = (words[..., 1:] & (BEGINS | GIVEN)) == 0
    count = team.sum(learned.sum()).clamp(min=1)
    return [
        Batch(
            tokens=tokens[i],
            begins=begins[i],
            learned=learned[i],
            passes=len(words),
            step_targets=count,
            team=team,
            rounding=rounding,
        )
        for i in range(len(words))
    ]
