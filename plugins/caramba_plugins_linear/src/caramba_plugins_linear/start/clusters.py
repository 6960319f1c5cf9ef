"""Sorting keys into slots: weighted k-means, deterministic, and nothing in it waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]

_ROUNDS = 12


def k_means(points: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres ``[..., count, d]`` of points ``[..., N, d]`` with weights ``[..., N]``, and the place of each point's
    centre ``[..., N]``; each of the leading axes is a problem of its own.

    Starts as k-means++ does (each next centre is drawn by weight times squared distance) from a generator of its own,
    so that equal points give equal centres.  A centre that loses all its points stays where it was.
    """
    generator = torch.Generator().manual_seed(0)
    races = torch.empty(count, points.shape[-2], dtype=points.dtype).exponential_(generator=generator)
    nearest = torch.full_like(weights, float("inf"))
    mass, chosen = weights, []
    for race in races.to(points.device):
        # Of exponential clocks with these rates, each is the first to ring as often as its share of the mass.
        winner = (mass / race).argmax(dim=-1, keepdim=True)
        centre = points.gather(-2, winner[..., None].expand(*winner.shape, points.shape[-1]))
        chosen.append(centre)
        nearest = torch.minimum(nearest, (points - centre).square().sum(-1))
        left = weights * nearest
        mass = torch.where(left.sum(-1, keepdim=True) > 0, left, weights)
    centres = torch.cat(chosen, dim=-2)
    slots = torch.arange(count, device=points.device)
    for _ in range(_ROUNDS):
        members = (_places(points, centres)[..., None] == slots) * weights[..., None]  # [..., N, count]
        mass = members.sum(-2)[..., None]
        means = members.transpose(-1, -2) @ points / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        centres = torch.where(mass > 0, means, centres)
    return centres, _places(points, centres)


def _places(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point: ``[..., N]``."""
    return (centres.square().sum(-1)[..., None, :] - 2 * points @ centres.transpose(-1, -2)).argmin(dim=-1)
