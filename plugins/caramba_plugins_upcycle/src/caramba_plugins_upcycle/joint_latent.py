"""The joint latent of keys and values that loses least of a layer's output, from a teacher's moments.

A latent ``c = D u`` of ``u = [k; v]`` gives keys ``U_k c`` and values ``U_v c``.  Keys err under one query's attention
(an error that all tokens share changes no softmax), values as attention mixes them, so each kind has a measure of its
own: ``C`` for keys, ``M`` for values, both ``[n, n]`` second moments of ``u``.  The loss, in units of the output, is

    tr(Gamma E_k (I - U D) C (I - U D)^T E_k^T) + tr(Omega E_v (I - U D) M (I - U D)^T E_v^T)

with ``Gamma`` what queries make of an error in the keys and ``Omega`` what the output projection makes of one in the
values.  For equal measures it is one eigenproblem; from that start, ``U`` and ``D`` are solved for in turn, each
exactly.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width; n = 2 G d, or fewer where a part
of the keys is cached elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from caramba_plugins_upcycle.threads import one_thread

__all__ = ["Joint", "Signals", "evenly", "signals", "solve", "spectrum"]

_RIDGE = 1e-6
_SMALLEST_EIGENVALUE = 1e-7
_ROUNDS = 30
_LEAST_GAIN = 3e-4
"""A round that takes less than this share off the loss is the last."""


@attrs.frozen(kw_only=True, eq=False)
class Signals:
    """``gamma`` and ``omega`` ``[G d, G d]``, the measures ``keys`` and ``values`` ``[2 G d, 2 G d]``, and the ``mean``
    ``[2 G d]`` of what attention mixes, which ``values`` are centred by.
    """

    gamma: Tensor
    omega: Tensor
    keys: Tensor
    values: Tensor
    mean: Tensor


def signals(
    o_proj: Tensor,
    query_second: Tensor,
    joint: Mapping[str, Tensor],
    *,
    multiplier: float,
    centred: bool,
    key_price: float = 1.0,
) -> Signals:
    """Of a teacher's ``o_proj`` ``[D, H d]``, second moments of its queries ``[H, d, d]`` and what
    :class:`~caramba_plugins_upcycle.moments.KeyValueMoments` collects.

    What a score's error costs: errors of single scores that know nothing of each other move a head's mixture by the
    spread of its values.  They do know of each other: ``key_price`` multiplies it.
    """
    heads, head_dim, _ = query_second.shape
    groups = len(joint["token_mean"]) // (2 * head_dim)
    by_head = o_proj.view(len(o_proj), heads, head_dim).permute(1, 0, 2)  # [H, D, d]
    outputs = by_head.transpose(1, 2) @ by_head  # [H, d, d]
    price = key_price * multiplier**2 * (outputs * joint["noise"]).sum((1, 2))  # [H]
    gamma, omega = (
        torch.block_diag(*per_head.view(groups, -1, head_dim, head_dim).sum(1))
        for per_head in (price[:, None, None] * query_second, outputs)
    )
    centre, mean = joint["token_mean"], joint["attended_mean"]
    tokens = joint["token_second"] - torch.outer(centre, centre)
    values = joint["attended_second"]
    return Signals(
        gamma=gamma,
        omega=omega,
        keys=(tokens + joint["spread"]) / 2,
        values=values - torch.outer(mean, mean) if centred else values,
        mean=mean,
    )


@attrs.frozen(kw_only=True)
class Joint:
    """``down`` ``[r, n]``, ``up`` ``[n, r]``, and the shares of keys' and values' signal that are lost."""

    down: Tensor
    up: Tensor
    keys_lost: float
    values_lost: float


def solve(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor, rank: int) -> Joint:
    """The latent of ``rank`` for weights ``gamma`` ``[k, k]`` and ``omega`` ``[n - k, n - k]`` and measures ``keys``,
    ``values`` ``[n, n]``, of which the first ``k`` are keys.

    Full rank gives the identity.
    """
    half, size = len(gamma), len(keys)
    if rank >= size:
        eye = torch.eye(size, dtype=keys.dtype)
        return Joint(down=eye, up=eye, keys_lost=0.0, values_lost=0.0)
    gamma, omega = _ridged(gamma), _ridged(omega)
    keys, values = _ridged(keys), _ridged(values)
    with one_thread():
        down = _principal(gamma, omega, keys, values, rank)
        up, down = _in_turn(gamma, omega, keys, values, down)
    basis, triangle = torch.linalg.qr(up)
    signs = triangle.diagonal().sign()  # a factorization has none of its own
    up, down = basis * signs, signs[:, None] * (triangle @ down)
    error = torch.eye(size, dtype=keys.dtype) - up @ down
    return Joint(
        down=down,
        up=up,
        keys_lost=_share(gamma, (error @ keys @ error.T)[:half, :half], keys[:half, :half]),
        values_lost=_share(omega, (error @ values @ error.T)[half:, half:], values[half:, half:]),
    )


def _ridged(matrix: Tensor) -> Tensor:
    """Symmetric, with a ridge of 1e-6 of the mean diagonal: directions that nothing reads stay invertible."""
    ridge = _RIDGE * matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    return (matrix + matrix.T) / 2 + ridge * torch.eye(len(matrix), dtype=matrix.dtype)


def evenly(joint: Joint, signal: Signals, second: Tensor) -> Joint:
    """The same latent in the basis where rounding each of its values to the same number of bits costs least.

    With ``C = E[c c^T]`` and ``W`` the price of an error of the latent, rounding costs about ``sum_i C_ii W_ii``: a
    value errs in proportion to its size.  The least over all bases is ``(sum_i sqrt(l_i))^2 / r``, ``l`` the
    eigenvalues of ``C W``: where ``C`` and ``W`` both are ``diag(sqrt(l))``, turned by a random rotation, so that all
    values have about equal shares.  ``second`` ``[n, n]`` is ``E[u u^T]`` over tokens.
    """
    half = len(signal.gamma)
    up_key, up_value = joint.up[:half], joint.up[half:]
    weight = _ridged(up_key.T @ signal.gamma @ up_key + up_value.T @ signal.omega @ up_value)
    with one_thread():
        lower = torch.linalg.cholesky(weight)
        size, vectors = torch.linalg.eigh(lower.T @ joint.down @ second @ joint.down.T @ lower)
        fourth = size.clamp_min(_SMALLEST_EIGENVALUE * size[-1]) ** 0.25
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(size), len(size), generator=generator, dtype=torch.float64)
        rotation, triangle = torch.linalg.qr(drawn)
        rotation = rotation * triangle.diagonal().sign()
        into = rotation @ (vectors / fourth).T @ lower.T
        back = torch.linalg.solve_triangular(lower.T, vectors * fourth, upper=True) @ rotation.T
    up = joint.up @ back
    scale = (len(size) / up.square().sum()).sqrt()  # reads the latent on the scale of keys and values
    return attrs.evolve(joint, down=into @ joint.down / scale, up=up * scale)


def spectrum(signal: Signals) -> Tensor:
    """What each direction carries of keys and values under one measure, largest first; sums to one: ``[n]``.

    The share that a latent of :func:`solve` loses is about that of the directions behind its rank.
    """
    with one_thread():
        values, _ = _components(_ridged(signal.gamma), _ridged(signal.omega), signal.keys, signal.values)
    values = values.clamp_min(0).flip(0)
    shares: Tensor = values / values.sum()
    return shares


def _principal(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor, rank: int) -> Tensor:
    """The start: principal components under one measure."""
    _, components = _components(gamma, omega, keys, values)
    return components[:, -rank:].flip(-1).T


def _components(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What directions carry, ascending, and what reads them ``[n, n]``, a column each.

    The one measure is made of each kind's own block and the mean of the rest.
    """
    half, weight = len(gamma), torch.block_diag(gamma, omega)
    signal = (keys + values) / 2
    signal[:half, :half], signal[half:, half:] = keys[:half, :half], values[half:, half:]
    size, vectors = torch.linalg.eigh(weight)
    root = (vectors * size.clamp_min(_SMALLEST_EIGENVALUE * size[-1]).sqrt()) @ vectors.T
    carried, components = torch.linalg.eigh(root @ signal @ root)
    return carried, root @ components


def _in_turn(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """``U`` and ``D``, each the best for the other, until a round gains next to nothing.

    ``U`` is a regression.  The best ``D`` for given ``U`` is where the loss is flat:

        U_k^T Gamma U_k D C + U_v^T Omega U_v D M = U_k^T Gamma E_k C + U_v^T Omega E_v M

    Both pairs of symmetric matrices are made diagonal together, after which every entry stands alone.  For ``C`` and
    ``M`` that is done once, and ``d`` is ``D`` in that basis.
    """
    half = len(gamma)
    basis, inverse, c = _together(keys, values)
    key, value = inverse[:, :half], inverse[:, half:]
    d = down @ inverse.T
    total = float((gamma * keys[:half, :half]).sum() + (omega * values[half:, half:]).sum())
    explained = 0.0
    for _ in range(_ROUNDS):
        up_key, up_value = _regression(d, c, key), _regression(d, 1 - c, value)
        from_key, from_value = up_key.T @ gamma, up_value.T @ omega
        wanted = from_key @ key.T * c + from_value @ value.T * (1 - c)
        left, _, a = _together(from_key @ up_key, from_value @ up_value)
        d = left @ (left.T @ wanted / (a[:, None] * c + (1 - a)[:, None] * (1 - c)))
        before, explained = explained, float((wanted * d).sum())
        if explained - before <= _LEAST_GAIN * (total - explained):
            break
    return torch.cat([_regression(d, c, key), _regression(d, 1 - c, value)]), d @ basis.T


def _regression(d: Tensor, measure: Tensor, wanted: Tensor) -> Tensor:
    """The best reading of ``wanted`` ``[n, k]`` from the latent under a diagonal measure: ``[k, r]``."""
    weighed = d * measure
    reading: Tensor = torch.linalg.solve(weighed @ d.T, weighed @ wanted).T
    return reading


def _together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``X``, its inverse and ``a`` with ``X^T one X = diag(a)`` and ``X^T other X = diag(1 - a)``."""
    lower = torch.linalg.cholesky(one + other)
    whitened = torch.linalg.solve_triangular(lower, one, upper=False)
    whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
    shares, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    both = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    return both, vectors.T @ lower.T, shares.clamp(0, 1)


def _share(weight: Tensor, error: Tensor, signal: Tensor) -> float:
    return float((weight * error).sum() / (weight * signal).sum())
