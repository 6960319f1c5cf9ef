"""Next-token training in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_plugins_standard.layer_modules import LinearHeadModule
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import StepResult, TrainingContext
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.chunked_head import backward_in_chunks, linear_cross_entropy

__all__ = ["PretrainRunner"]


class PretrainRunner:
    """One step: the layers over all tokens, then loss and gradient of the head a chunk of rows at a time."""

    def __init__(self, config: Pretrain, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """The student stands ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.compiles = self.context.run.compiles

    def step(self, batch: Batch) -> StepResult:
        """Mean cross entropy in nats of the next token."""
        with self.context.autocast():
            hidden = self.student.hidden(batch.inputs, batch.frame(self.student)).flatten(0, 1)
        targets, weight = batch.targets.flatten(), self.student.head_weight
        if type(self.student.head) is LinearHeadModule and type(weight) is nn.Parameter:  # no distributed tensor
            with self.context.autocast():
                rows = self.config.logit_rows
                total = linear_cross_entropy(hidden, weight, targets, rows=rows, compiles=self.compiles)
            loss = batch.mean(total)
            loss.backward()
            return StepResult(loss=loss.detach())

        def part_of_loss(part: Tensor, where: slice) -> Tensor:
            with self.context.autocast():
                logits = self.student.logits(part)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return batch.mean(F.cross_entropy(wide, targets[where], reduction="sum"))

        return StepResult(loss=backward_in_chunks(hidden, self.config.logit_rows, part_of_loss))
