"""The rotary key that all heads share: the parts of the teacher's keys that need their rotation most.

At frequency ``p`` the keys of all ``G`` heads are a complex vector ``k_p`` (pair ``(p, p + P)`` as
``k[p] + i k[p + P]``), which rotation multiplies as a whole.  So any complex combination of its entries may be cached
in place of them (TransMLA's RoRoPE, arXiv 2502.07864, takes real ones): the shared key is the principal components of
``k_p`` at every ``p``, weighed by what it would cost each head to lose their rotation, and the dearest ``n`` of all
frequencies together are kept.

Axes: H query heads, G key/value heads, d head width, P = d/2 frequencies, n kept components.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

__all__ = ["Shared", "choose"]

_RIDGE = 1e-6


@attrs.frozen(kw_only=True)
class Shared:
    """``pairs`` ``[n]``; ``read`` ``[2 n, G d]`` makes the shared key of all heads' keys; ``query`` ``[H, 2 n, d]``
    each head's rotary query of its query; ``rest`` ``[G d, G d]`` takes the shared key out of the keys; ``kept`` is the
    share of the weighed energy that stays rotary.
    """

    pairs: Tensor
    read: Tensor
    query: Tensor
    rest: Tensor
    kept: float


def choose(query_second: Tensor, key_second: Tensor, rho: Tensor, count: int) -> Shared:
    """The ``count`` components that are dearest to lose.

    ``query_second`` ``[H, d, d]``, ``key_second`` ``[G d, G d]``, ``rho`` ``[H, P]``.  Without its rotation a
    component's part of the scores of head ``h`` is wrong by ``E|q_hp|^2 2 (1 - Re rho_hp)`` times its energy in the
    head's key.
    """
    heads, width, _ = query_second.shape
    groups, half = key_second.shape[0] // width, width // 2
    energy = query_second.diagonal(dim1=-2, dim2=-1)
    lost = (energy[:, :half] + energy[:, half:]) * 2 * (1 - rho.real)  # [H, P]
    weight = lost.view(groups, -1, half).sum(1)  # [G, P]
    weight = (weight + _RIDGE * weight.mean()).T.sqrt()  # [P, G], as it weighs amplitudes
    covariance = _complex_second(key_second, groups, half)  # [P, G, G]
    values, vectors = torch.linalg.eigh(weight[:, :, None] * covariance * weight[:, None, :])
    order = values.flatten().argsort(descending=True, stable=True)[:count].sort().values
    pairs, component = order // groups, order % groups
    chosen = vectors[pairs, :, component]  # [n, G]: one component a row
    into = chosen.conj() * weight[pairs]  # z = sum_g into_g k_g
    out = chosen / weight[pairs]  # k_g = sum_i out_ig z_i + rest
    scale = out.abs().square().sum(1, keepdim=True).sqrt()  # the shared key on the scale of the keys
    into, out = into * scale, out / scale
    read = _real(into, pairs, half)
    per_head = out.repeat_interleave(
        heads // groups, dim=1
    ).conj()  # [n, H]: Re(conj(q) out z) = Re(conj(conj(out) q) z)
    query = torch.stack([_real(per_head[:, h : h + 1], pairs, half) for h in range(heads)])
    rest = torch.eye(groups * width, dtype=torch.float64) - _real(out.conj(), pairs, half).T @ read
    total = values.clamp_min(0).sum()
    kept = float(values.flatten()[order].clamp_min(0).sum() / total) if total > 0 else 1.0
    return Shared(pairs=pairs, read=read, query=query, rest=rest, kept=kept)


def _complex_second(second: Tensor, groups: int, half: int) -> Tensor:
    """``E[k k^H]`` at each frequency from real moments ``[G d, G d]``: complex ``[P, G, G]``."""
    parts = second.view(groups, 2, half, groups, 2, half).diagonal(dim1=2, dim2=5)  # [G, 2, G, 2, P]
    real = parts[:, 0, :, 0] + parts[:, 1, :, 1]
    imaginary = parts[:, 1, :, 0] - parts[:, 0, :, 1]
    return torch.complex(real, imaginary).permute(2, 0, 1)


def _real(rows: Tensor, pairs: Tensor, half: int) -> Tensor:
    """Complex combinations ``[n, G]`` at frequencies ``pairs`` as a real matrix ``[2 n, G d]``, both in the half
    layout.
    """
    count, groups = rows.shape
    made = torch.zeros(2, count, groups, 2, half, dtype=torch.float64)
    place = torch.arange(count)
    made[0, place, :, 0, pairs] = rows.real
    made[0, place, :, 1, pairs] = -rows.imag
    made[1, place, :, 0, pairs] = rows.imag
    made[1, place, :, 1, pairs] = rows.real
    return made.view(2 * count, groups * 2 * half)
