"""Next-token training in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import StepResult, TrainingContext
from caramba_plugins_standard.training.chunked_head import backward_in_chunks
from caramba_plugins_standard.training.documents import packed_frame, separator_in, targets_within

__all__ = ["PretrainRunner"]


class PretrainRunner:
    """One step: the layers over all tokens, then loss and gradient of the head a chunk of rows at a time."""

    def __init__(self, config: Pretrain, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """The student stands ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.separator = separator_in(self.context)

    def step(self, tokens: Tensor) -> StepResult:
        """Mean cross entropy in nats of the next token: int64 ``[B, T + 1]``; the last token is only a target."""
        inputs = tokens[:, :-1]
        with self.context.autocast():
            hidden = self.student.hidden(inputs, packed_frame(self.student, inputs, self.separator)).flatten(0, 1)
        targets = targets_within(tokens, self.separator).flatten()
        count = len(targets) if self.separator is None else (targets >= 0).sum().clamp(min=1)

        def loss(part: Tensor, where: slice) -> Tensor:
            with self.context.autocast():
                logits = self.student.logits(part)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(wide, targets[where], reduction="sum") / count

        return StepResult(loss=backward_in_chunks(hidden, self.config.logit_rows, loss))
