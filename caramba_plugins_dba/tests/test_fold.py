"""A constant in place of a rotation: its sign, and what it buys, on synthetic attention some tokens back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start import StartCase, start
from caramba_plugins_dba.start.selection import folded, importance, stand_in
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.rotary import mean_rotation
from caramba_plugins_upcycle.transplant import Calibrated
from dba_conversion import filled, gather_moments, inputs
from torch import Tensor

from caramba_core.errors import InvalidValue

WIDTH, HEADS, GROUPS, HEAD_DIM = 24, 4, 2, 8
ROPE = Rope(theta=50.0)
SOURCE = GroupedQueryAttention(n_heads=HEADS, n_kv_heads=GROUPS, head_dim=HEAD_DIM, rope=ROPE)
DISTANCES = torch.tensor([0.0, 0.1, 0.5, 0.3, 0.1], dtype=torch.float64).repeat(HEADS, 1)
"""Share of the attention at each distance, every head's."""


def rho() -> Tensor:
    return mean_rotation(DISTANCES, torch.tensor(ROPE.frequencies(HEAD_DIM), dtype=torch.float64))


def complex_pairs(x: Tensor) -> Tensor:
    """``[..., d] -> [..., P]``, dimension ``p`` and ``p + P``."""
    return torch.complex(*x.unflatten(-1, (2, -1)).unbind(-2))


def error(constant: Tensor) -> float:
    """Mean squared error of logits, between queries folded by this constant and rotated ones, over the distances."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(500, HEADS, HEAD_DIM, generator=generator, dtype=torch.float64)
    k = torch.randn(500, HEADS, HEAD_DIM, generator=generator, dtype=torch.float64)
    ours = folded(q.permute(1, 2, 0), constant).permute(2, 0, 1)
    without = (complex_pairs(ours).conj() * complex_pairs(k)).real.sum(-1)
    frequencies = torch.tensor(ROPE.frequencies(HEAD_DIM), dtype=torch.float64)
    total = 0.0
    for distance, share in enumerate(DISTANCES[0].tolist()):
        turn = torch.polar(torch.ones(HEAD_DIM // 2, dtype=torch.float64), -distance * frequencies)
        rotated = (complex_pairs(q).conj() * complex_pairs(k) * turn).real.sum(-1)
        total += share * float((without - rotated).square().mean())
    return total


def test_the_sign_of_the_fold() -> None:
    mean, none, wrong = error(rho()), error(torch.ones_like(rho())), error(rho().conj())
    assert mean < 0.9 * none
    assert none < wrong
    assert mean < error(stand_in(rho(), "phase")) < none


@pytest.mark.parametrize("fold", ["none", "mean", "phase"])
def test_the_cost_of_a_pair_is_its_error(fold: str) -> None:
    """The formula of the importance against the error itself, with queries and keys of unit variance."""
    constant = stand_in(rho(), fold)
    unit = torch.eye(HEAD_DIM, dtype=torch.float64).expand(HEADS, -1, -1)
    cost = importance(unit, torch.eye(GROUPS * HEAD_DIM, dtype=torch.float64), rho(), constant=constant)
    # Four: E|q|^2 E|k|^2 of a pair; half of it, as logits are real parts; one logit a head.
    assert float(cost.sum()) / 2 == pytest.approx(error(constant) * HEADS, rel=0.1)


def moments(x: Tensor) -> dict[str, Any]:
    """Measured moments, but for the distances."""
    module = filled(SOURCE, WIDTH, seed=3)
    target = DecoupledBottleneckAttention(
        n_heads=HEADS, n_kv_heads=GROUPS, head_dim=HEAD_DIM, sem_dim=16, geo_dim=0, v_dim=16
    )
    return {**gather_moments(module, SOURCE, target, x), "distance": {"attention": DISTANCES}}


def case(weights: Any, target: DecoupledBottleneckAttention, measured: Any, fold: str = "none") -> StartCase:
    """The source with these weights and moments, to be started as the target."""
    return StartCase(
        source=Calibrated(config=SOURCE, weights=weights, width=WIDTH, moments=measured), target=target, fold=fold
    )


@pytest.mark.parametrize("layout", ["shared", "per_head"])
@pytest.mark.parametrize("pairs", [0, 1])
def test_a_start_with_a_fold_has_the_rotated_logits_in_the_mean(layout: str, pairs: int) -> None:
    """At full rank the semantic logits are those of the moved pairs, turned by the mean rotation, head by head."""
    target = DecoupledBottleneckAttention(
        n_heads=HEADS,
        n_kv_heads=GROUPS,
        head_dim=HEAD_DIM,
        sem_dim=GROUPS * (HEAD_DIM - 2 * pairs),
        geo_dim=2 * GROUPS * pairs,
        v_dim=16,
        rope=ROPE if pairs else None,
        k_layout=layout,  # type: ignore[arg-type]
    )
    x = inputs(2, 40, WIDTH, seed=4)
    weights = dict(filled(SOURCE, WIDTH, seed=3).named_parameters())
    started = start(case(weights, target, moments(x), fold="mean"))
    made, per_group = started.weights, HEADS // GROUPS
    with torch.no_grad():
        q = (x @ weights["q_proj"].T).view(2, 40, HEADS, HEAD_DIM)
        k = (x @ weights["k_proj"].T).view(2, 40, GROUPS, HEAD_DIM).repeat_interleave(per_group, dim=2)
        turned = torch.einsum("bthp,bshp,hp->bhtsp", complex_pairs(q).conj(), complex_pairs(k), rho()).real
        if pairs:
            kept = made["pairs"].repeat_interleave(per_group, dim=0)
            moved = torch.ones(HEADS, HEAD_DIM // 2, dtype=torch.bool).scatter(1, kept, value=False)
            turned = turned * moved[:, None, None]
        expected = turned.sum(-1)
        q_sem = (x @ made["q_sem_proj"].T).view(2, 40, HEADS, -1)
        k_sem = x @ made["k_sem_proj"].T
        k_sem = k_sem.view(2, 40, GROUPS, -1).repeat_interleave(per_group, dim=2) if layout == "per_head" else k_sem
        ours = torch.einsum("bthc,bshc->bhts" if layout == "per_head" else "bthc,bsc->bhts", q_sem, k_sem)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def test_moments_of_folded_queries_are_those_of_the_folded_projection() -> None:
    """Truncation is decided by the queries that the student will have."""
    x = inputs(2, 40, WIDTH, seed=4)
    weights = dict(filled(SOURCE, WIDTH, seed=3).named_parameters())
    target = DecoupledBottleneckAttention(
        n_heads=HEADS, n_kv_heads=GROUPS, head_dim=HEAD_DIM, sem_dim=5, geo_dim=0, v_dim=16
    )
    ours = start(case(weights, target, moments(x), fold="mean"))
    with torch.no_grad():
        rows = weights["q_proj"].view(HEADS, HEAD_DIM, WIDTH)
        turned = {**weights, "q_proj": folded(rows, rho()).reshape(HEADS * HEAD_DIM, WIDTH)}
        q = (x @ turned["q_proj"].T).view(-1, HEADS, HEAD_DIM)
        second = torch.einsum("nhi,nhj->hij", q, q) / len(q)
        measured = {**moments(x), "query": {"second": second}}
        plain = start(case(turned, target, measured))
    assert ours.report["semantic_lost"] == pytest.approx(plain.report["semantic_lost"], rel=1e-9)
    product = [
        made.weights["q_sem_proj"].view(HEADS, 5, WIDTH).mT @ made.weights["k_sem_proj"] for made in (ours, plain)
    ]
    torch.testing.assert_close(product[0], product[1], rtol=0, atol=1e-10)


def test_nothing_turns_nothing_to_fold() -> None:
    source = GroupedQueryAttention(n_heads=HEADS, n_kv_heads=GROUPS, head_dim=HEAD_DIM, rope=None)
    target = DecoupledBottleneckAttention(
        n_heads=HEADS, n_kv_heads=GROUPS, head_dim=HEAD_DIM, sem_dim=16, geo_dim=0, v_dim=16
    )
    with pytest.raises(InvalidValue, match="nothing to fold"):
        GQAToDBA(fold="mean").check(source, target, WIDTH)
