"""Conversions on another device than the CPU: no step mixes devices, and the student becomes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_standard.quantized import Int4
from caramba_plugins_upcycle.allocation.sensitivity import measure_sensitivities
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.transplant import Transplant
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.graph import Graph
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plugins.registry import registry
from caramba_core.run.student import assemble
from caramba_core.sites import Site, find_sites
from tests.elsewhere import Elsewhere, Placed, place
from tests.plan.shapes import ROPE, chain, graph_of, residual

HEADS: dict[str, Any] = {"n_heads": 6, "n_kv_heads": 3, "head_dim": 8, "rope": ROPE}
GQA = {"type": "gqa", **HEADS}
DBA = {"type": "dba", **HEADS, "sem_dim": 9, "geo_dim": 12, "v_dim": 12, "o_bias": True}
SHARED = {**DBA, "geo_layout": "shared", "geo_dim": 8}
JOINT = {**SHARED, "latent": "joint", "sem_dim": 0, "v_dim": 20}
SERVABLE = {**SHARED, "layout": "servable", "sem_dim": 6, "geo_dim": 6, "v_dim": 12}
MLA = {"type": "mla", **HEADS, "rope_dim": 4, "rank": 12, "o_bias": True}
BIASES = {"qkv_bias": True, "o_bias": True}
OFFSETS = {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True}
NORMS = {"qk_norm_eps": 1e-6}
ALL = {"refine": True, "refit_mlp": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "free": (GQA, DBA, ALL),
    "free, all refits": (GQA, DBA, {**ALL, "transplant": ("gqa_to_dba", {"refits": "kvq", "iterations": 2})}),
    "free, students' inputs": (GQA, DBA, {"inputs": "student"}),
    "free, biases": ({**GQA, **BIASES}, {**DBA, **OFFSETS}, ALL),
    "free, norms": ({**GQA, **NORMS}, {**DBA, **NORMS}, ALL),
    "free, norms and biases": ({**GQA, **NORMS, **BIASES}, {**DBA, **NORMS, **OFFSETS}, ALL),
    "free, folded": (GQA, DBA, {**ALL, "transplant": ("gqa_to_dba", {"fold": "mean"})}),
    "free, by norm": (GQA, DBA, {"transplant": ("gqa_to_dba", {"selection": "norm"})}),
    "free, by frequency": (GQA, DBA, {"transplant": ("gqa_to_dba", {"selection": "frequency"})}),
    "free, white": (GQA, DBA, {"transplant": ("gqa_to_dba", {"weighting": "none"})}),
    "free, per head": (GQA, {**DBA, "k_layout": "per_head", "v_layout": "per_head"}, ALL),
    "free, no rotation": (GQA, {**DBA, "geo_dim": 0}, ALL),
    "free, gates": (GQA, {**DBA, "gate": "dynamic", "temperature": True}, ALL),
    "free, windows": ({**GQA, "window": 9}, {**DBA, "window": 9}, ALL),
    "shared": (GQA, SHARED, {**ALL, "transplant": ("gqa_to_dba", {"refits": "kvq", "iterations": 2})}),
    "servable": (GQA, SERVABLE, ALL),
    "servable, given pairs": (GQA, SERVABLE, {"transplant": ("gqa_to_dba", {"pairs": [0, 1, 3]})}),
    "joint": (GQA, JOINT, ALL),
    "joint, biases": ({**GQA, **BIASES}, {**JOINT, **OFFSETS}, ALL),
    "joint, per head": (GQA, {**JOINT, "geo_layout": "per_head", "geo_dim": 12}, ALL),
    "mla": (GQA, MLA, ALL),
    "mla, normalized": (GQA, {**MLA, "latent_norm_eps": 1e-6, "o_bias": False}, {"refit": False}),
    "windows": (GQA, {"type": "sliding_window", **HEADS, "window": 9}, {}),
    "linear": (GQA, {"type": "linear_attention", **HEADS, "features": 4, "window": 4, "sinks": 2}, {"refit": False}),
}


def model(attention: dict[str, Any]) -> Graph:
    block = {"type": "nested", "repeat": 2, "layers": [residual(attention), residual({"type": "swiglu", "d_ff": 32})]}
    return graph_of(chain(block, {"type": "rms_norm"}), tied=False, width=24, vocabulary=40)


def settings_of(transplant: tuple[str, dict[str, Any]] | None = None, **settings: Any) -> Start:
    made: Transplant | None = None
    if transplant is not None:
        name, options = transplant
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        made = registry().load(registry().find(["transplant"], name))(**options)
    return Start(transplant=made, **settings)


def both(theirs: Graph, ours: Graph) -> tuple[LanguageModel, LanguageModel, tuple[Site, ...]]:
    teacher = build(theirs, dtype=torch.float32, seed=0).requires_grad_(False)
    kind: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "seed": 0}
    student = assemble(ours, teacher=teacher, tensors=None, trained=frozenset(), **kind)
    return teacher, student, find_sites(theirs, ours)


def windows(count: int = 5, tokens: int = 24, batch: int = 3) -> list[Tensor]:
    drawn = torch.randint(40, (count, tokens), generator=torch.Generator().manual_seed(0))
    return list(drawn.split(batch))


@pytest.mark.parametrize("case", CASES)
def test_no_step_of_a_conversion_mixes_devices(case: str) -> None:
    source, target, given = CASES[case]
    theirs, ours, settings = model(source), model(target), settings_of(**given)
    students = []
    for placed in False, True:
        teacher, student, sites = both(theirs, ours)
        texts = windows()
        if placed:
            texts = [Placed(tokens) for tokens in texts]
            place(teacher)
            place(student)
        with Elsewhere():  # attention is spelled out there, with either
            Calibration(teacher=teacher, student=student, sites=sites, settings=settings).run(texts)
        students.append(student.state_dict())
    wanted, found = students
    for name, tensor in found.items():
        assert isinstance(tensor, Placed), name
        if (
            name.startswith("blocks.0.") and case != "linear"
        ):  # what follows, and clusters enlarges roundings where components are about equal
            torch.testing.assert_close(tensor.held, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [DBA, SHARED, JOINT], ids=["free", "shared", "joint"])
def test_no_step_of_an_allocation_mixes_devices(target: dict[str, Any]) -> None:
    teacher, _, sites = both(model(GQA), model(target))
    configs = [site.student.config for site in sites]
    candidates = {
        site.name: [config] for site, config in zip(sites, configs, strict=True) if isinstance(config, Attention)
    }
    place(teacher)
    texts = [Placed(tokens) for tokens in windows()]
    with Elsewhere():
        found = measure_sensitivities(
            teacher=teacher,
            sites=sites,
            candidates=candidates,
            storages=[None, Int4()],
            settings=Start(),
            calibration=texts,
            measured=texts[:1],
        )
    assert all(one.curves for each in found.values() for one in each)
