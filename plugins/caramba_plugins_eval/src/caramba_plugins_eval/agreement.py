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
from caramba_plugins_eval.likelihoods import NORMAL, perplexity_of
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Agreement
from caramba_plugins_eval.subject import Subject

__all__ = ["agreement"]

_LOGIT_ROWS: Final = 256
"""Tokens whose logits are held at once, of both models."""


def agreement(metric: Agreement, subject: Subject) -> dict[str, Figure]:
    """The mean divergence, the share of equal tokens and the ratio, over the tokens that perplexity scores.

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
    context, compared = settings.context, list[Tensor]()
    with (
        torch.inference_mode(),
        subject.computing(),
        subject.bar(metric.called, windows.size) as bar,
    ):
        for first in range(0, len(windows), settings.batch_size):
            tokens = torch.from_numpy(windows[first : first + settings.batch_size]).to(subject.device)
            hidden = hidden_states(model, tokens, subject.storage)[:, :-1], hidden_states(teacher, tokens, None)[:, :-1]
            rows = [one.flatten(0, 1).split(_LOGIT_ROWS) for one in (*hidden, tokens[:, 1:, None])]
            parts = [
                _compared(model.logits(ours), teacher.logits(theirs), targets)
                for ours, theirs, targets in zip(*rows, strict=True)
            ]
            compared.append(torch.cat(parts, dim=1).view(3, len(tokens), -1).double().cpu())
            bar.advance(tokens.numel())
    kl, top1, lost = torch.cat(compared, dim=1).numpy()
    if not np.isfinite(kl).all():
        raise NumericalStop(
            f"{metric.called}: {int((~np.isfinite(kl)).sum())} of {kl.size} divergences are not finite",
            hint="look for infinite or NaN weights, or a float16 overflow",
        )
    places = {"": slice(None)}
    if metric.buckets > 1:
        places |= {f".{part}": slice(begin - 1, end) for part, begin, end in metric.parts(context)}
    found = dict[str, Figure]()
    for name, here in places.items():
        found[f"kl{name}"] = _mean(kl[:, here], unit="nats")
        found[f"top1{name}"] = _mean(top1[:, here], worse="smaller")
        found[f"ratio{name}"] = perplexity_of(lost[:, here])
    return found


def _compared(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """KL(teacher || student), whether both have the same likeliest token, and nats that the student loses: ``[3, N]``.

    For rows of logits ``[N, V]`` and the tokens that follow, int64 ``[N, 1]``.
    """
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in (student, teacher)]
    log_q, log_p = (one.log_softmax(-1) for one in wide)
    lost = (log_p - log_q).gather(-1, targets).squeeze(-1)
    same = wide[0].argmax(-1) == wide[1].argmax(-1)
    return torch.stack([(log_p.exp() * (log_p - log_q)).sum(-1), same.to(lost.dtype), lost])


def _mean(values: np.ndarray[tuple[int, int], np.dtype[Any]], **known: Any) -> Figure:
    mean, error = float(values.mean()), error_of_mean(values)
    return Figure(
        value=mean, interval=None if error is None else (mean - NORMAL * error, mean + NORMAL * error), **known
    )
