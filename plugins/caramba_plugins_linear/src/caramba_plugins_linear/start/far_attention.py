"""What the teacher's attention to far tokens is like, on whole sequences.

One sequence at a time on the device that holds them, in their own type; what is summed over tokens is float64.

Axes: N sequences, H query heads, G key/value heads, m = H/G, T tokens, d head width, P = d/2 pairs.
"""

from __future__ import annotations

import attrs
import torch
from caramba_plugins_standard.rotary import cos_sin, rotate_reference
from torch import Tensor

from caramba_plugins_linear.attention import LinearAttention

__all__ = ["FarAttention", "far_attention", "summed_turns", "waves"]


@attrs.frozen(kw_only=True)
class FarAttention:
    """``received`` ``[N, G, m, T]`` is what each key gets from later tokens that are far from it, ``total``
    ``[N, G, m, T]`` the logarithm of each query's denominator, near tokens included.

    ``turn`` is ``E[exp(-i theta_p (t - s))]`` over each head's far attention, times what rotation scales scores by:
    complex ``[G, m, P]``; none without rotation.
    """

    received: Tensor
    total: Tensor
    turn: Tensor | None


def far_attention(config: LinearAttention, query: Tensor, key: Tensor) -> FarAttention:
    """Of ``query`` ``[N, H, T, d]`` and ``key`` ``[N, G, T, d]`` before rotation."""
    groups, tokens = key.shape[1], key.shape[2]
    wave = waves(config, tokens, key.device)
    ahead = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device).triu(1)
    received, total, turned = [], [], []
    for q, k in zip(query, key, strict=True):
        if config.rope is not None:
            turn = cos_sin(_frequencies(config, k.device), torch.arange(tokens, device=k.device))
            q, k = rotate_reference(q, *turn), rotate_reference(k, *turn)
        # [G, m, T, T], as large as a probe: every step works in place
        scores = (q.reshape(groups, -1, *q.shape[1:]) @ k[:, None].transpose(2, 3)).mul_(
            _factor(config) * config.multiplier
        )
        scores.masked_fill_(ahead, float("-inf"))
        top = scores.amax(dim=-1, keepdim=True)
        sums = scores.sub_(top).exp_().sum(dim=-1, keepdim=True)
        total.append((top.double() + sums.double().log()).squeeze(-1))
        far = scores.div_(sums).tril_(-config.window)
        far[..., : config.sinks] = 0.0
        received.append(far.sum(dim=-2).double())
        if wave is not None:
            turned.append(summed_turns(far, wave))
    attended = torch.stack(received)
    mean = None
    if turned:
        mass = attended.sum((0, 3)).clamp_min(torch.finfo(attended.dtype).tiny)
        mean = _factor(config) * torch.stack(turned).sum(0) / mass[..., None]
    return FarAttention(received=attended, total=torch.stack(total), turn=mean)


def waves(config: LinearAttention, tokens: int, device: torch.device) -> Tensor | None:
    """``exp(i theta_p t)``: complex128 ``[T, P]``; none without rotation."""
    if config.rope is None:
        return None
    angle = torch.arange(tokens, device=device)[:, None] * _frequencies(config, device)
    return torch.polar(torch.ones_like(angle), angle)


def summed_turns(attention: Tensor, wave: Tensor) -> Tensor:
    """``sum_ts attention_ts exp(-i theta_p (t - s))`` of ``[..., T, T]``: complex128 ``[..., P]``."""
    parts = torch.view_as_real(wave).flatten(1).to(attention.dtype)  # [T, 2 P]
    read = (attention @ parts).double()
    read = torch.view_as_complex(read.view(*read.shape[:-1], -1, 2))
    return (read * wave.conj()).sum(-2)


def _frequencies(config: LinearAttention, device: torch.device) -> Tensor:
    assert config.rope is not None
    return torch.tensor(config.rope.frequencies(config.head_dim), dtype=torch.float64, device=device)


def _factor(config: LinearAttention) -> float:
    """What rotation multiplies scores by."""
    return 1.0 if config.rope is None else config.rope.attention_scaling**2
