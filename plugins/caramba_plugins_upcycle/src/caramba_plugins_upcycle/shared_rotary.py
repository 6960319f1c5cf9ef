"""The rotary key that all heads share: the parts of the teacher's keys that need their rotation most.

At frequency ``p`` the keys of all ``G`` heads are a complex vector ``k_p`` (pair ``(p, p + P)`` as
``k[p] + i k[p + P]``), which rotation multiplies as a whole.  So any complex combination of its entries may be cached
in place of them (TransMLA's RoRoPE, arXiv 2502.07864, takes real ones): the shared key is the principal components of
``k_p`` at every ``p``, weighed by what it would cost each head to lose their rotation, and the dearest ``n`` of all
frequencies together are kept.

Axes: H query heads, G key/value heads, d head width, P = d/2 frequencies, n kept components.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

__all__ = ["Shared", "choose", "dearness"]

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


def dearness(query_second: Tensor, key_second: Tensor, rho: Tensor) -> Tensor:
    """What it costs to lose the rotation of each component, the dearest of a frequency first: ``[P, G]``.

    ``query_second`` ``[H, d, d]``, ``key_second`` ``[G d, G d]``, ``rho`` ``[H, P]``.  Without its rotation a
    component's part of the scores of head ``h`` is wrong by ``E|q_hp|^2 2 (1 - Re rho_hp)`` times its energy in the
    head's key.
    """
    return _components(query_second, key_second, rho)[1].flip(1)


def _components(query_second: Tensor, key_second: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What weighs amplitudes ``[P, G]``; what each component costs, ascending, ``[P, G]``; components ``[P, G, G]``."""
    width = query_second.shape[-1]
    groups, half = key_second.shape[0] // width, width // 2
    energy = query_second.diagonal(dim1=-2, dim2=-1)
    lost = (energy[:, :half] + energy[:, half:]) * 2 * (1 - rho.real)  # [H, P]
    weight = lost.view(groups, -1, half).sum(1)  # [G, P]
    weight = (weight + _RIDGE * weight.mean()).T.sqrt()  # [P, G]
    covariance = _complex_second(key_second, groups, half)  # [P, G, G]
    values, vectors = torch.linalg.eigh(weight[:, :, None] * covariance * weight[:, None, :])
    return weight, values, vectors


def choose(
    query_second: Tensor, key_second: Tensor, rho: Tensor, count: int, *, pairs: Sequence[int] | None = None
) -> Shared:
    """The ``count`` components that are dearest to lose, of the moments that :func:`dearness` takes.

    ``pairs``, ascending, says how often each frequency is taken; its dearest components are.
    """
    heads, width, _ = query_second.shape
    groups, half = key_second.shape[0] // width, width // 2
    weight, values, vectors = _components(query_second, key_second, rho)
    if pairs is None:
        order = values.flatten().argsort(descending=True, stable=True)[:count].sort().values
    else:
        taken = torch.bincount(torch.tensor(pairs), minlength=half)
        order = torch.nonzero((torch.arange(groups) >= groups - taken[:, None]).flatten()).flatten()
    place, component = order // groups, order % groups
    chosen = vectors[place, :, component]  # [n, G]: one component a row
    into = chosen.conj() * weight[place]  # z = sum_g into_g k_g
    out = chosen / weight[place]  # k_g = sum_i out_ig z_i + rest
    scale = out.abs().square().sum(1, keepdim=True).sqrt()  # the shared key on the scale of the keys
    into, out = into * scale, out / scale
    read = _real(into, place, half)
    per_head = out.repeat_interleave(
        heads // groups, dim=1
    ).conj()  # [n, H]: Re(conj(q) out z) = Re(conj(conj(out) q) z)
    query = torch.stack([_real(per_head[:, h : h + 1], place, half) for h in range(heads)])
    rest = torch.eye(groups * width, dtype=torch.float64) - _real(out.conj(), place, half).T @ read
    total = values.clamp_min(0).sum()
    kept = float(values.flatten()[order].clamp_min(0).sum() / total) if total > 0 else 1.0
    return Shared(pairs=place, read=read, query=query, rest=rest, kept=kept)


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
