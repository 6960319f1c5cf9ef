"""Next-token training in torch."""

from __future__ import annotations

from torch import Tensor

from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import StepResult, TrainingContext
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.chunked_head import backward_behind_head, cross_entropy_with_gradient

__all__ = ["PretrainRunner"]


class PretrainRunner:
    """One step: the layers over all tokens, then loss and gradient of the head a chunk of rows at a time."""

    def __init__(self, config: Pretrain, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """The student stands ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.cross_entropy = cross_entropy_with_gradient(compiles=self.context.run.compiles)

    def step(self, batch: Batch) -> StepResult:
        """Mean cross entropy in nats of the next token."""
        autocast = self.context.autocast
        with autocast():
            hidden = self.student.hidden(batch.inputs, batch.frame(self.student)).flatten(0, 1)
        targets = batch.targets.flatten()

        def loss(logits: Tensor, where: slice) -> tuple[Tensor, Tensor]:
            return self.cross_entropy(logits, targets[where])

        rows = self.config.logit_rows
        mean = backward_behind_head(self.student, hidden, loss, rows=rows, mean=batch.mean, autocast=autocast)
        return StepResult(loss=mean)
