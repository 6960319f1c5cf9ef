"""Distillation of logits, in chunks that never hold more than a few rows of the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caramba_core.nn.chunked_head import backward_in_chunks
from caramba_core.training import StepResult, TrainingContext
from caramba_plugins_upcycle.strategies import Global

__all__ = ["GlobalRunner", "divergence"]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each row, in nats times ``temperature**2``: ``[N, V], [N, V] -> [N]``.

    The factor keeps gradients of one size over temperatures (Hinton, Vinyals, Dean 2015, section 2).
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


class GlobalRunner:
    """One step: both models over the same tokens, then loss and gradient a chunk of rows at a time."""

    def __init__(self, config: Global, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """Student and teacher stand ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.teacher = self.context.teacher
        # One fused pass over the vocabulary instead of ten: worth it where memory bandwidth is the limit.
        self.divergence = torch.compile(divergence) if self.context.compiles else divergence

    def step(self, tokens: Tensor) -> StepResult:
        """int64 ``[B, T + 1]``; the last token is only a target."""
        config, context = self.config, self.context
        inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
        with context.autocast():
            with torch.no_grad():
                wanted = self.teacher.hidden(inputs).flatten(0, 1)
            hidden = self.student.hidden(inputs).flatten(0, 1)
        parts: dict[str, list[Tensor]] = {}

        def loss(part: Tensor, where: slice) -> Tensor:
            with context.autocast():
                with torch.no_grad():
                    teacher_logits = self.teacher.logits(wanted[where])
                logits = self.student.logits(part)
            kl: Tensor = self.divergence(logits, teacher_logits, config.temperature).sum() / len(targets)
            parts.setdefault("kl", []).append(kl.detach())
            if not config.cross_entropy:
                return kl
            ce = F.cross_entropy(logits.float(), targets[where], reduction="sum") / len(targets)
            parts.setdefault("cross_entropy", []).append(ce.detach())
            return kl + config.cross_entropy * ce

        total = backward_in_chunks(hidden, config.logit_rows, loss)
        return StepResult(loss=total, metrics={name: torch.stack(values).sum() for name, values in parts.items()})
