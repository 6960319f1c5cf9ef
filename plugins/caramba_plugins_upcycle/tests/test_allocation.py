"""Dividing a budget of cached bytes: the arithmetic against every possibility, and what is written of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.perplexity import hidden_states
from caramba_plugins_standard.quantized import Full, Int4, Int8
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.allocation.budget import Choice, Place, divide, held_bytes, part_of_the_way
from caramba_plugins_upcycle.allocation.sensitivity import Measured, Sensitivity, measure_sensitivities
from caramba_plugins_upcycle.allocation.writing import set_attentions, written
from caramba_plugins_upcycle.modes import Start
from hypothesis import given
from hypothesis import strategies as st

from caramba_core.components import evolve
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.sites import find_sites

GQA = GroupedQueryAttention(n_heads=4, n_kv_heads=1, head_dim=1)
"""Caches a key and a value of one head: 2 values per token and unit of ``head_dim``."""


def choice(count: int, loss: float) -> Choice:
    return Choice(candidate=0, sizes={}, storage=None, bytes=count, loss=loss)


choices = st.lists(st.builds(choice, st.integers(1, 30), st.integers(0, 9).map(float)), min_size=1, max_size=5)


@given(st.lists(choices, min_size=1, max_size=4), st.integers(0, 40))
def test_a_budget_is_divided_as_well_as_can_be(places: list[list[Choice]], more: int) -> None:
    budget = sum(min(one.bytes for one in own) for own in places) + more
    found = divide(places, budget)
    assert all(one in own for one, own in zip(found, places, strict=True))
    assert sum(one.bytes for one in found) <= budget
    fitting = (one for one in itertools.product(*places) if sum(each.bytes for each in one) <= budget)
    assert sum(one.loss for one in found) == min(sum(each.loss for each in one) for one in fitting)


def test_a_step_that_pays_only_with_the_next_is_taken_with_it() -> None:
    late = [choice(1, 10.0), choice(2, 10.0), choice(3, 0.0)]
    steady = [choice(1, 6.0), choice(2, 4.0), choice(3, 3.0)]
    assert [one.bytes for one in divide([late, steady], 4)] == [3, 1]


def test_bytes_without_a_common_divisor_stay_within_the_budget() -> None:
    places = [[choice(10**9 + 1, 5.0), choice(10**9 + 70_001, 1.0)] for _ in range(3)]
    found = divide(places, 3 * 10**9 + 150_000)
    assert [one.loss for one in found].count(1.0) == 2


def test_too_small_a_budget_names_the_least() -> None:
    with pytest.raises(ValueError, match="7 bytes are the least"):
        divide([[choice(3, 1.0), choice(4, 0.0)], [choice(4, 0.0)]], 6)


def falling(own: int, losses: Sequence[float], *, step: int = 4) -> Measured:
    """A size, ``head_dim``, of ``step``, twice and three times as much, ...; caches add 0.0, 0.25 and 4.0."""
    sizes = tuple(step * (at + 1) for at in range(len(losses)))
    curve = Sensitivity(field="head_dim", own=own, sizes=sizes, losses=tuple(losses))
    config = evolve(GQA, head_dim=own)
    return Measured(config=config, divergence=losses[sizes.index(own)], curves=(curve,), rounded=(0.0, 0.25, 4.0))


def place(*candidates: Measured) -> Place:
    return Place(width=8, context=10, candidates=candidates, storages=(None, Int8(block=16), Int4(block=16)))


def test_choices_are_worth_their_bytes() -> None:
    whole = Measured(config=evolve(GQA, head_dim=16), rounded=(0.0, 0.25, 4.0))
    found = place(falling(8, [9.0, 3.0, 1.0, 0.5]), whole).choices()
    assert [one.bytes for one in found] == sorted(one.bytes for one in found)
    assert [one.loss for one in found] == sorted((one.loss for one in found), reverse=True)
    of = {(one.candidate, one.sizes.get("head_dim"), type(one.storage).__name__): one for one in found}
    assert of[1, None, "NoneType"].bytes == 10 * 2 * 16 * 2
    assert of[1, None, "Int8"].bytes == 10 * 2 * (16 + 4)
    assert of[1, None, "Int8"].loss == 0.25
    assert (0, 16, "Int8") not in of  # as many bytes as the teacher's own, and more lost
    assert of[0, 8, "Int8"].bytes == held_bytes(evolve(GQA, head_dim=8), 8, Int8(block=16), 10)
    assert of[0, 8, "Int8"].loss == 3.25


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=6), min_size=1, max_size=4),
    st.data(),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_part_of_the_way_stays_between_and_within_the_budget(
    drawn: list[list[int]], data: st.DataObject, more: int, step: float
) -> None:
    places = []
    for falls in drawn:
        losses = [float(sum(falls[at:])) for at in range(len(falls))]
        places.append(place(falling(data.draw(st.integers(1, len(falls) - 1)) * 4, losses)))
    budget = sum(one.choices()[0].bytes for one in places) + 100 * more
    best = divide([one.choices() for one in places], budget)
    try:
        found = part_of_the_way(places, best, budget, step)
    except ValueError:  # equal shares of a small budget may be smaller than the smallest sizes
        assert step < 1
        return
    assert sum(one.bytes for one in found) <= budget
    if step == 1:
        assert sum(one.loss for one in found) == sum(one.loss for one in best)
    own = [at.bytes_of(at.candidates[0].config, goal.storage) for at, goal in zip(places, best, strict=True)]
    scale = budget / sum(own)
    for at, goal, one in zip(places, best, found, strict=True):
        assert one.storage == goal.storage
        low, high = sorted((at.candidates[0].curves[0].own * scale, goal.sizes["head_dim"]))
        assert low - 8 <= one.sizes["head_dim"] < high + 4


def test_what_has_no_sizes_stays_all_of_the_way() -> None:
    kept = Measured(config=evolve(GQA, head_dim=4), rounded=(0.0, 9.0, 9.0))
    places = [place(falling(8, [9.0, 3.0, 1.0, 0.5])), place(kept)]
    best = divide([one.choices() for one in places], 10 * 2 * 2 * (8 + 4))
    assert part_of_the_way(places, best, 10 * 2 * 2 * (8 + 4), 0.5)[1] == best[1]


# ------------------------------------------------------------------------------------------------ what is measured


def test_rounding_is_measured_as_decoding_reads() -> None:
    """Against models in which one layer's cache is rounded, on a text and on one that says its first half again."""
    kept = [{"type": "residual", "layers": ["rms_norm", KEPT]}, {"type": "swiglu", "d_ff": 32}]
    teacher = built(model_of(layers=kept))
    sites = find_sites(teacher.graph, lower(structure_model(model_of())))
    assert [site.name for site in sites] == BLOCKS
    text = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(2))
    found = measure_sensitivities(
        teacher=teacher,
        sites=sites,
        candidates={site.name: [site.teacher.config] for site in sites},  # type: ignore[list-item]
        storages=(None, Int4(block=4)),
        settings=Start(),
        calibration=[],
        measured=[text],
    )
    again = torch.cat([text[:, :6], text[:, :6]], dim=1)
    for place, name in enumerate(BLOCKS):
        rounded = built(
            model_of(layers=kept, each={"attention.cache": [CACHE if at == place else None for at in range(3)]})
        )
        kl = []
        for tokens, first in ((text, 0), (again, 6)):
            ours, wanted = (one.logits(hidden_states(one, tokens, None))[:, first:] for one in (rounded, teacher))
            kl.append((wanted.softmax(-1) * (wanted.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).flatten())
        (measured,) = found[name]
        assert measured.rounded == (0.0, pytest.approx(float(torch.cat(kl).mean()), rel=1e-4))
        assert measured.rounded[1] > 1e-4


def test_the_teachers_logits_are_computed_once() -> None:
    """A pass of the head for each text, and one for each candidate, with the figures of each candidate alone."""
    kept = [{"type": "residual", "layers": ["rms_norm", KEPT]}, {"type": "swiglu", "d_ff": 32}]
    teacher, passes = built(model_of(layers=kept)), list[int]()
    sites = find_sites(teacher.graph, lower(structure_model(model_of())))
    teacher.head.register_forward_hook(lambda *_: passes.append(1))
    text = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(2))

    def rounded(*storages: Int4 | None) -> list[tuple[float, ...]]:
        found = measure_sensitivities(
            teacher=teacher,
            sites=sites,
            candidates={site.name: [site.teacher.config] for site in sites},  # type: ignore[list-item]
            storages=storages,
            settings=Start(),
            calibration=[],
            measured=[text],
        )
        return [one.rounded for (one,) in found.values()]

    fine, coarse = Int4(block=4), Int4(block=8)
    together = rounded(None, fine, coarse)
    assert len(passes) == 2 + 2 * 2 * len(sites)
    alone = [first + second[1:] for first, second in zip(rounded(None, fine), rounded(None, coarse), strict=True)]
    assert together == alone


def built(model: dict[str, object]) -> LanguageModel:
    """With weights large enough for attention to matter."""
    made = build(lower(structure_model(model)), seed=1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8.0)
    return made.requires_grad_(False)


# ------------------------------------------------------------------------------------------------ what is written

CACHE = {"type": "int4", "block": 4}

ROPE = {"theta": 100.0}
OWN = {
    "type": "dba",
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 6,
    "sem_dim": 4,
    "geo_dim": 8,
    "v_dim": 8,
    "rope": ROPE,
}
KEPT = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": ROPE}
WINDOW = {**KEPT, "type": "sliding_window", "window": 64, "sinks": 4}
BLOCKS = [f"model.blocks.{index}.attention" for index in range(3)]


def model_of(**blocks: object) -> dict[str, object]:
    layers = [{"type": "residual", "layers": ["rms_norm", OWN]}, {"type": "swiglu", "d_ff": 32}]
    nested = {"type": "nested", "repeat": 3, "layers": layers, **blocks}
    topology = {"type": "stacked", "layers": [nested]}
    return {"type": "transformer", "embedder": {"type": "token", "vocab_size": 40, "d_model": 24}, "topology": topology}


def attentions_of(model: dict[str, object]) -> list[object]:
    nested = structure_model(model).topology.layers[0]  # type: ignore[attr-defined]
    return [body.layers[0].layers[1] for body in nested.bodies()]


def made(*described: dict[str, object]) -> dict[str, object]:
    """Attentions of three blocks, by name."""
    found = []
    for one in described:
        model = model_of(layers=[{"type": "residual", "layers": ["rms_norm", one]}, {"type": "swiglu", "d_ff": 32}])
        found.append(attentions_of(model)[0])
    return dict(zip(BLOCKS, found, strict=True))


@pytest.mark.parametrize(
    ("described", "each"),
    [
        ([{**OWN, "v_dim": size} for size in (4, 8, 10)], {"attention.v_dim": [4, 8, 10]}),
        (
            [{**OWN, "cache": "int8"}, {**OWN, "cache": {"type": "int4", "block": 8}}, {**OWN, "cache": "full"}],
            {"attention.cache": ["int8", {"type": "int4", "block": 8}, "full"]},
        ),
        ([{**OWN, "cache": "int8"}, {**KEPT, "cache": "int4"}, {**OWN, "cache": "int8"}], None),
        ([{**OWN, "v_dim": 4}, {**KEPT, "cache": "int4"}, OWN], {"attention.v_dim": [4, None, 8]}),
        ([KEPT, {**WINDOW, "window": 32}, WINDOW], {"attention.window": [None, 32, 64]}),
        ([WINDOW, KEPT, {**OWN, "geo_dim": 4}], None),
        ([OWN, OWN, OWN], None),
    ],
    ids=["sizes", "caches", "kept", "kept and sizes", "none of its own", "three", "as it was"],
)
def test_what_is_written_gives_each_layer_its_attention(
    described: list[dict[str, object]], each: dict[str, object] | None
) -> None:
    chosen = made(*described)
    document = {"model": model_of(), "groups": [{"runs": [{"id": "allocate"}, {"id": "convert"}]}]}
    (own,) = set(attentions_of(model_of()))
    set_attentions(document, "allocate", chosen, own)  # type: ignore[arg-type]
    assert document["groups"] == [{"runs": [{"id": "convert"}]}]
    found = attentions_of(document["model"])  # type: ignore[arg-type]
    assert found == list(chosen.values())
    blocks = document["model"]["topology"]["layers"][0]  # type: ignore[index, call-overload]
    assert blocks.get("each") == each
    types = {str(one["type"]) for one in described}
    assert len(blocks.get("variants", [])) == len(types) - 1


def test_sizes_that_the_manifest_has_by_layer_are_written_anew() -> None:
    document = {"model": model_of(each={"attention.v_dim": [4, 8, 10]}), "groups": [{"runs": []}]}
    own = attentions_of(document["model"])[0]  # type: ignore[arg-type]
    chosen = made({**OWN, "v_dim": 8}, KEPT, {**OWN, "v_dim": 8})
    set_attentions(document, "allocate", chosen, own)  # type: ignore[arg-type]
    assert attentions_of(document["model"]) == list(chosen.values())  # type: ignore[arg-type]


def test_configs_in_the_words_of_a_manifest() -> None:
    assert written(Int8()) == "int8"
    assert written(Int4(block=8)) == {"type": "int4", "block": 8}
    assert written(Full()) == "full"
    gqa = GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=6, rope=Rope(theta=100.0), cache=Int8())
    assert written(gqa) == {**KEPT, "cache": "int8"}
