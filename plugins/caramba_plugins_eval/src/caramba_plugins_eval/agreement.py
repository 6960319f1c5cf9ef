"""How far a student's next-token distributions are from its teacher's.  Axes: N windows, B windows of a pass, T tokens,
D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from caramba_plugins_standard.measurement import error_of_mean
from caramba_plugins_standard.perplexity import hidden_states
from torch import Tensor

from caramba_core.errors import InputError, NumericalStop
from caramba_plugins_eval.likelihoods import NORMAL
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Agreement
from caramba_plugins_eval.subject import Subject

__all__ = ["agreement"]

_LOGIT_ROWS: Final = 256
"""Tokens whose logits are held at once, of both models."""


def agreement(metric: Agreement, subject: Subject) -> dict[str, Figure]:
    """The mean divergence and the share of equal tokens, over the tokens that perplexity scores.

    The teacher's cache keeps what was computed, the student's as ``eval:`` says.
    """
    model, teacher = subject.model, subject.teacher
    if model.graph.vocab_size != teacher.graph.vocab_size:
        raise InputError(
            f"{metric.called}: {subject.name} has {model.graph.vocab_size:,} tokens, "
            f"and the teacher {teacher.graph.vocab_size:,}",
            expected="models of one vocabulary",
        )
    settings = subject.settings(metric.context or subject.evaluation.context)
    windows = subject.tokens.read(0, settings.windows * settings.context).reshape(settings.windows, settings.context)
    divergences, same = list[Tensor](), list[Tensor]()
    with (
        torch.inference_mode(),
        subject.computing(),
        subject.reporter.bar(metric.called, windows.size) as bar,
    ):
        for first in range(0, len(windows), settings.batch_size):
            tokens = torch.from_numpy(windows[first : first + settings.batch_size]).to(subject.device)
            hidden = hidden_states(model, tokens, subject.storage)[:, :-1], hidden_states(teacher, tokens, None)[:, :-1]
            parts = [
                _compared(model.logits(ours), teacher.logits(theirs))
                for ours, theirs in zip(*(one.flatten(0, 1).split(_LOGIT_ROWS) for one in hidden), strict=True)
            ]
            for kept, part in zip((divergences, same), zip(*parts, strict=True), strict=True):
                kept.append(torch.cat(part).view(len(tokens), -1).double().cpu())
            bar.advance(tokens.numel())
    kl, top1 = torch.cat(divergences).numpy(), torch.cat(same).numpy()
    if not np.isfinite(kl).all():
        raise NumericalStop(
            f"{metric.called}: {int((~np.isfinite(kl)).sum())} of {kl.size} divergences are not finite",
            hint="look for infinite or NaN weights, or a float16 overflow",
        )
    return {"kl": _mean(kl, "nats"), "top1": _mean(top1, "")}


def _compared(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) and whether both have the same likeliest token, for rows of logits ``[N, V]``: ``[N]``."""
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in (student, teacher)]
    log_q, log_p = (one.log_softmax(-1) for one in wide)
    return (log_p.exp() * (log_p - log_q)).sum(-1), wide[0].argmax(-1) == wide[1].argmax(-1)


def _mean(values: np.ndarray[tuple[int, int], np.dtype[Any]], unit: str) -> Figure:
    mean, error = float(values.mean()), error_of_mean(values)
    return Figure(
        value=mean, unit=unit, interval=None if error is None else (mean - NORMAL * error, mean + NORMAL * error)
    )
