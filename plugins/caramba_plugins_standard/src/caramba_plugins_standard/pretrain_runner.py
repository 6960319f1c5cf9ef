"""Next-token training in torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.training import StepResult
from caramba_plugins_standard.pretrain import Pretrain

__all__ = ["PretrainRunner", "backward_in_chunks"]


class PretrainRunner:
    """One step: the layers over all tokens, then loss and gradient of the head a chunk of rows at a time."""

    def __init__(self, config: Pretrain, context: RunContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """The student stands ready; the context froze what does not train."""
        self.student = self.context.student.train()

    def step(self, tokens: Tensor) -> StepResult:
        """int64 ``[B, T + 1]``; the last token is only a target."""
        return StepResult(loss=backward_in_chunks(self.student, tokens, self.config.logit_rows, self.context.autocast))


def backward_in_chunks(
    model: LanguageModel,
    tokens: Tensor,
    rows: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Mean cross entropy in nats of the next token, and its gradients; int64 ``[B, T + 1]``, the loss comes detached.

    The head runs on a detached copy, so that each chunk's logits are freed before the next chunk's exist.
    """
    with autocast():
        hidden = model.hidden(tokens[:, :-1]).flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    leaf = hidden.detach().requires_grad_()
    losses = []
    for at in range(0, len(targets), rows):
        with autocast():
            logits = model.logits(leaf[at : at + rows])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(wide, targets[at : at + rows], reduction="sum") / len(targets)
        loss.backward()
        losses.append(loss.detach())
    if hidden.requires_grad:  # not where the head alone trains
        hidden.backward(leaf.grad)
    return torch.stack(losses).sum()
