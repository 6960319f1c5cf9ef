"""Each collector against its definition, written as loops, on random probes of odd shapes."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.probing import Probe
from caramba_plugins_upcycle.moments import (
    QUERIES,
    AttendedKeyMoments,
    AttendedValueMoments,
    DistanceMoments,
    KeyMoments,
    KeyValueMoments,
    QueryMoments,
)
from caramba_plugins_upcycle.transplant import Collector, Moment

from caramba_core.components import Attention
from caramba_core.nn.build import load_object

HEADS, GROUPS, WIDTH, D = 6, 2, 3, 10


def probe(batch: int, tokens: int, seed: int) -> Probe:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) + 0.5

    scores = draw(batch, HEADS, tokens, tokens) * 2
    ahead = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return Probe(
        x=draw(batch, tokens, D),
        query=draw(batch, HEADS, tokens, WIDTH),
        key=draw(batch, GROUPS, tokens, WIDTH),
        value=draw(batch, GROUPS, tokens, WIDTH),
        probabilities=scores.masked_fill(ahead, float("-inf")).softmax(-1),
        mixed=draw(batch, tokens, HEADS * WIDTH),
        output=draw(batch, tokens, D),
        positions=torch.arange(tokens),
    )


def collected(moment: Moment, *probes: Probe) -> dict[str, torch.Tensor]:
    collector: Collector = load_object(moment.builds)(moment, Attention(), D)
    for each in probes:
        collector.update(each)
    result = dict(collector.result())
    assert all(value.dtype == torch.float64 for value in result.values())
    return result


PROBES = (probe(2, 7, 0), probe(1, 5, 1), probe(3, 7, 2))
"""Batches of different sizes and window lengths."""


def flat(x: torch.Tensor) -> torch.Tensor:
    """All heads side by side: ``[B, G, T, d] -> [B T, G d]``."""
    return torch.stack(
        [torch.cat([x[b, g, t] for g in range(GROUPS)]) for b in range(len(x)) for t in range(x.shape[2])]
    )


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted.double(), rtol=1e-5, atol=1e-5)


def test_queries() -> None:
    found = collected(QueryMoments(), *PROBES)
    for head in range(HEADS):
        rows = torch.cat([p.query[:, head].flatten(0, 1) for p in PROBES])
        close(found["mean"][head], rows.mean(0))
        close(found["second"][head], sum(torch.outer(r, r) for r in rows) / len(rows))


def test_keys_of_all_heads_side_by_side() -> None:
    rows = torch.cat([flat(p.key) for p in PROBES])
    found = collected(KeyMoments(), *PROBES)
    close(found["mean"], rows.mean(0))
    close(found["second"], sum(torch.outer(r, r) for r in rows) / len(rows))


def test_attention_by_distance_leaves_the_first_token_out() -> None:
    wanted = torch.zeros(HEADS, 7)
    for p in PROBES:
        for b, h, t, s in torch.cartesian_prod(*(torch.arange(n) for n in p.probabilities.shape)).tolist():
            if 0 < s <= t:
                wanted[h, t - s] += p.probabilities[b, h, t, s]
    found = collected(DistanceMoments(), *PROBES)["attention"]
    close(found, wanted / wanted.sum(-1, keepdim=True))


def test_a_head_that_only_attends_to_the_first_token_has_no_distances() -> None:
    sink = probe(1, 6, 3)
    sink.probabilities.zero_()[..., 0] = 1.0
    assert not collected(DistanceMoments(), sink)["attention"].any()


def test_keys_under_attention() -> None:
    wanted, count = torch.zeros(GROUPS * WIDTH, GROUPS * WIDTH), 0
    for p in PROBES:
        keys = flat(p.key).view(len(p.key), -1, GROUPS * WIDTH)
        for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in p.probabilities.shape[:3])).tolist():
            weight = p.probabilities[b, h, t]
            centred = keys[b] - weight @ keys[b]
            wanted += sum(w * torch.outer(k, k) for w, k in zip(weight, centred, strict=True))
            count += 1
    close(collected(AttendedKeyMoments(), *PROBES)["covariance"], wanted / count)


def test_attended_values_of_all_groups_under_each_head() -> None:
    rows = []
    for p in PROBES:
        values = flat(p.value).view(len(p.value), -1, GROUPS * WIDTH)
        rows += [p.probabilities[b, h] @ values[b] for b in range(len(values)) for h in range(HEADS)]
    stacked = torch.cat(rows)
    found = collected(AttendedValueMoments(), *PROBES)
    close(found["mean"], stacked.mean(0))
    close(found["second"], stacked.T @ stacked / len(stacked))


def test_keys_and_values_together() -> None:
    tokens, mixtures, spread = [], [], torch.zeros(2 * GROUPS * WIDTH, 2 * GROUPS * WIDTH)
    noise, seen = torch.zeros(HEADS, WIDTH, WIDTH), 0
    for p in PROBES:
        both = torch.cat([flat(p.key), flat(p.value)], dim=1).view(len(p.key), -1, 2 * GROUPS * WIDTH)
        tokens.append(both.flatten(0, 1))
        seen += len(both) * both.shape[1]
        for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in p.probabilities.shape[:3])).tolist():
            weight = p.probabilities[b, h, t]
            mixtures.append(weight @ both[b])
            centred = both[b] - mixtures[-1]
            spread += centred.T @ (weight[:, None] * centred)
            value = p.value[b, h // (HEADS // GROUPS)]
            off = value - weight @ value
            noise[h] += off.T @ (weight[:, None] ** 2 * off)
    found = collected(KeyValueMoments(), *PROBES)
    for name, rows in (("token", torch.cat(tokens)), ("attended", torch.stack(mixtures))):
        close(found[f"{name}_mean"], rows.mean(0))
        close(found[f"{name}_second"], rows.T @ rows / len(rows))
    close(found["spread"], spread / len(mixtures))
    close(found["noise"], noise / seen)


@pytest.mark.parametrize("tokens", [1, 2, QUERIES - 1, QUERIES, QUERIES + 1, 2 * QUERIES + 44])
def test_windows_of_any_length(tokens: int) -> None:
    """Mixtures are computed some queries at a time, and tokens that none of them sees are left out."""
    p = probe(1, tokens, 7)
    probabilities = p.probabilities.double()[0]  # [H, T, T]
    key, value = (flat(each).double() for each in (p.key, p.value))
    value_of = {h: p.value[0, h // (HEADS // GROUPS)].double() for h in range(HEADS)}

    distances = torch.stack([probabilities[..., 1:].diagonal(-k - 1, 1, 2).sum(-1) for k in range(tokens)], dim=1)
    total = distances.sum(-1, keepdim=True)
    close(collected(DistanceMoments(), p)["attention"], distances / total.where(total > 0, 1.0))

    def spread(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``sum_s p (x_s - E x)(x_s - E x)^T``, added up over heads and queries."""
        received = weights.sum((0, 1))
        centre = (weights @ rows).flatten(0, 1)
        return rows.T @ (received[:, None] * rows) - centre.T @ centre

    queries = HEADS * tokens
    close(collected(AttendedKeyMoments(), p)["covariance"], spread(key, probabilities) / queries)
    mixed = (probabilities @ value).flatten(0, 1)
    found = collected(AttendedValueMoments(), p)
    close(found["mean"], mixed.mean(0))
    close(found["second"], mixed.T @ mixed / queries)
    both = torch.cat([key, value], dim=1)
    mixed = (probabilities @ both).flatten(0, 1)
    found = collected(KeyValueMoments(), p)
    close(found["attended_mean"], mixed.mean(0))
    close(found["attended_second"], mixed.T @ mixed / queries)
    close(found["token_second"], both.T @ both / tokens)
    close(found["spread"], spread(both, probabilities) / queries)
    for h, own in value_of.items():
        off = own - (probabilities[h] @ own)[:, None]  # [T, T, d]
        close(found["noise"][h], torch.einsum("ts,tsi,tsj->ij", probabilities[h] ** 2, off, off) / tokens)


@pytest.mark.parametrize(
    "moment",
    [QueryMoments(), KeyMoments(), DistanceMoments(), AttendedKeyMoments(), AttendedValueMoments(), KeyValueMoments()],
    ids=lambda m: type(m).__name__,
)
def test_the_order_of_batches_hardly_matters(moment: Moment) -> None:
    forwards, backwards = collected(moment, *PROBES), collected(moment, *reversed(PROBES))
    for name, value in forwards.items():
        torch.testing.assert_close(value, backwards[name], rtol=1e-13, atol=1e-13)
