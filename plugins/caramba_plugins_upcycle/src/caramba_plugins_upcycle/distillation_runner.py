"""Distillation of logits, in chunks that never hold more than a few rows of the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caramba_core.run.context import RunContext
from caramba_core.training import StepResult
from caramba_plugins_upcycle.distillation import Global

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

    def __init__(self, config: Global, context: RunContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """Student and teacher stand ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.teacher = self.context.teacher
        train = self.context.run.train
        assert train is not None
        # One fused pass over the vocabulary instead of ten: worth it where memory bandwidth is the limit.
        self.divergence = torch.compile(divergence) if train.compile else divergence

    def step(self, tokens: Tensor) -> StepResult:
        """int64 ``[B, T + 1]``; the last token is only a target."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
        with self.context.autocast():
            with torch.no_grad():
                wanted = self.teacher.hidden(inputs).flatten(0, 1)
            hidden = self.student.hidden(inputs).flatten(0, 1)
        # The head runs on a detached copy, so that each chunk's logits are freed before the next chunk's exist.
        leaf = hidden.detach().requires_grad_()
        kl_sum = torch.zeros((), device=tokens.device)
        ce_sum = torch.zeros((), device=tokens.device)
        count = len(targets)
        for at in range(0, count, self.config.logit_rows):
            rows = slice(at, at + self.config.logit_rows)
            with self.context.autocast():
                with torch.no_grad():
                    teacher_logits = self.teacher.logits(wanted[rows])
                logits = self.student.logits(leaf[rows])
            kl = self.divergence(logits, teacher_logits, self.config.temperature).sum()
            loss = kl
            if self.config.cross_entropy:
                ce = F.cross_entropy(logits.float(), targets[rows], reduction="sum")
                loss = kl + self.config.cross_entropy * ce
                ce_sum += ce.detach()
            (loss / count).backward()
            kl_sum += kl.detach()
        assert leaf.grad is not None
        hidden.backward(leaf.grad)
        metrics = {"kl": kl_sum / count}
        if self.config.cross_entropy:
            metrics["cross_entropy"] = ce_sum / count
        return StepResult(loss=(kl_sum + self.config.cross_entropy * ce_sum) / count, metrics=metrics)
