"""The fast paths against the reference: outputs and all gradients over odd shapes and every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_standard.decoding import chunks
from caramba_plugins_standard.rope import Rope
from dba_conversion import cached, filled, frame, inputs
from dba_reference import reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from caramba_core.components import Shape
from caramba_core.errors import InvalidValue

ROPE = Rope(theta=100.0)
YARN = Rope(theta=100.0, scaling="yarn", factor=4.0, original_max_position_embeddings=8)

_SHAPES = {"n_heads": 6, "n_kv_heads": 2, "head_dim": 10}
CASES: dict[str, dict[str, Any]] = {
    "H6-G2-d10-shared-latent": {"n_heads": 6, "n_kv_heads": 2, "head_dim": 10, "sem_dim": 5, "geo_dim": 8, "v_dim": 7},
    "H3-G1-d6-mqa": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 6, "sem_dim": 3, "geo_dim": 2, "v_dim": 5},
    "H2-G2-d4-mha": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "sem_dim": 1, "geo_dim": 4, "v_dim": 3},
    "H4-G2-d8-per-head": {
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "sem_dim": 6,
        "geo_dim": 4,
        "v_dim": 10,
        "k_layout": "per_head",
        "v_layout": "per_head",
    },
    "H1-G1-semantic-only": {"n_heads": 1, "n_kv_heads": 1, "head_dim": 4, "sem_dim": 3, "geo_dim": 0, "v_dim": 2},
    "H4-G4-rotary-only": {"n_heads": 4, "n_kv_heads": 4, "head_dim": 6, "sem_dim": 0, "geo_dim": 16, "v_dim": 9},
    "H6-G2-shared-key": {**_SHAPES, "geo_layout": "shared", "geo_dim": 14, "sem_dim": 3, "v_dim": 5},
    "H6-G2-shared-key-only": {
        **_SHAPES,
        "geo_layout": "shared",
        "geo_dim": 6,
        "sem_dim": 4,
        "v_dim": 6,
        "k_layout": "per_head",
        "v_layout": "per_head",
    },
    "H8-G4-groups2": {
        "n_heads": 8,
        "n_kv_heads": 4,
        "head_dim": 6,
        "geo_layout": "shared",
        "groups": 2,
        "geo_dim": 12,
        "sem_dim": 2,
        "v_dim": 6,
    },
    "servable": {
        "n_heads": 12,
        "n_kv_heads": 6,
        "head_dim": 6,
        "layout": "servable",
        "geo_layout": "shared",
        "groups": 3,
        "geo_dim": 18,
        "sem_dim": 12,
        "v_dim": 30,
    },
    "H6-G2-joint": {**_SHAPES, "latent": "joint", "geo_layout": "shared", "geo_dim": 6, "sem_dim": 0, "v_dim": 9},
    "H6-G2-joint-pairs": {**_SHAPES, "latent": "joint", "geo_dim": 8, "sem_dim": 0, "v_dim": 7},
    "H6-G2-joint-alone": {**_SHAPES, "latent": "joint", "geo_dim": 0, "sem_dim": 0, "v_dim": 23},
    "wide-values": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 18, "sem_dim": 2, "geo_dim": 2, "v_dim": 4},
}
BOTH = ("H6-G2-d10-shared-latent", "H4-G2-d8-per-head", "H8-G4-groups2")
ALL_BIASES = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), True)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": ALL_BIASES,
    "static-gate": {"gate": "static"},
    "dynamic-gate": {"gate": "dynamic", "q_bias": True},
    "temperature": {"temperature": True},
    "tied": {"tied_semantic": True},
    "null": {"null": True},
    "null-biases": {"null": True, **ALL_BIASES},
    "window": {"window": 3},
    "window-one": {"window": 1},
    "yarn": {"rope": YARN},
    "scale": {"scale": 1.3},
    "norms": {"qk_norm_eps": 1e-2},
    "norms-of-all": {"qk_norm_eps": 1e-2, "qk_norm_span": "all", "qk_norm_offset": 1.0, **ALL_BIASES, "null": True},
    "norms-tied": {"qk_norm_eps": 1e-2, "tied_semantic": True, "gate": "dynamic", "window": 4},
    "everything": {
        **ALL_BIASES,
        "gate": "dynamic",
        "temperature": True,
        "null": True,
        "window": 4,
        "rope": YARN,
        "scale": 0.4,
    },
    "everything-tied": {**ALL_BIASES, "gate": "static", "tied_semantic": True, "null": True, "window": 5},
}
FEW = {"servable": ("plain", "window"), "H6-G2-joint-pairs": ("plain", "window"), "H6-G2-joint-alone": ("biases",)}
FEW["H6-G2-joint"] = (*("plain", "biases", "static-gate", "dynamic-gate", "temperature", "window", "yarn", "scale"),)
PAIRS = [
    (case, option)
    for case in CASES
    for option in OPTIONS
    if case in BOTH or option in FEW.get(case, ("plain", "null", "window"))
]
WIDTH = 13


def made(case: str, option: str, dtype: torch.dtype = torch.float64) -> DecoupledBottleneckModule:
    config = DecoupledBottleneckAttention(**{**CASES[case], "rope": ROPE, **OPTIONS[option]})
    module = filled(config, WIDTH, seed=hash_of(case + option), dtype=dtype)
    assert isinstance(module, DecoupledBottleneckModule)
    return module


def hash_of(name: str) -> int:
    return sum(map(ord, name))


@pytest.mark.parametrize(("case", "option"), PAIRS)
@pytest.mark.parametrize("tokens", [1, 2, 11])
def test_training_pass(case: str, option: str, tokens: int) -> None:
    module = made(case, option)
    x = inputs(2, tokens, WIDTH, seed=1).requires_grad_()
    fast, slow = module(x, frame(x, first=3)), reference(module, x, frame(x, first=3).positions)
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-12)
    towards = torch.randn_like(fast)
    names = ["x", *dict(module.named_parameters())]
    tensors = [x, *module.parameters()]
    for name, a, b in zip(names, gradients(fast, tensors, towards), gradients(slow, tensors, towards), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def gradients(output: Tensor, tensors: list[Tensor], towards: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, tensors, towards, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


@pytest.mark.parametrize(("case", "option"), PAIRS)
@pytest.mark.parametrize("split", [(1,) * 8, (5, 1, 2), (3, 5)], ids=str)
def test_decoding(case: str, option: str, split: tuple[int, ...]) -> None:
    module = made(case, option)
    x = inputs(2, 8, WIDTH, seed=2)
    with torch.no_grad():
        decoded, layer = cached(module, x, split)
        torch.testing.assert_close(decoded, reference(module, x, torch.arange(8)), rtol=1e-11, atol=1e-12)
    config = module.config
    values = config.sem_dim + config.geo_dim + config.v_dim
    assert sum(t[0, 0].numel() for t in layer.tensors.values()) == values
    assert sum(entry.values for entry in config.cache_spec(WIDTH).values()) == values


@pytest.mark.parametrize(("case", "option"), PAIRS)
@pytest.mark.parametrize("tile", [1, 3, 64])
def test_decoding_in_tiles(case: str, option: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill behind a long cache, which is expanded tile by tile."""
    monkeypatch.setattr(chunks, "_SCORES", 0)
    monkeypatch.setattr(chunks, "_SMALLEST", tile)
    module, x = made(case, option), inputs(2, 11, WIDTH, seed=2)
    with torch.no_grad():
        decoded, _ = cached(module, x, (4, 7))
        torch.testing.assert_close(decoded, reference(module, x, torch.arange(11)), rtol=1e-11, atol=1e-12)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("case", [*BOTH, "H6-G2-joint"])
def test_decoding_never_expands_the_cache(case: str) -> None:
    module = made(case, "null-biases" if case in BOTH else "biases", torch.float32)
    x = inputs(1, 201, WIDTH, seed=3, dtype=torch.float32)
    with torch.no_grad():
        _, layer = cached(module, x[:, :200], (200,))
        layer.reserve(201)
        with Largest() as largest:
            cached(module, x[:, 200:], (1,), layer=layer)
    entries = [entry.values for entry in module.config.cache_spec(WIDTH).values()]
    assert largest.numel <= 202 * max(*entries, module.config.n_heads)


@pytest.mark.parametrize("option", OPTIONS)
def test_autocast(option: str) -> None:
    """Weights in float32, products in bfloat16: what is cached is bfloat16, and both paths are close."""
    module = made("H6-G2-d10-shared-latent", option, torch.float32)
    x = inputs(2, 8, WIDTH, seed=7, dtype=torch.float32)
    wanted = reference(module, x, torch.arange(8))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        full = module(x, frame(x))
        decoded, _ = cached(module, x, (5, 1, 2))
        queries, keys = module.queries_and_keys(x, torch.arange(8))
        assert {t.dtype for t in (*queries.values(), *keys.values())} == {torch.bfloat16}
    for found in (full, decoded):
        assert (found - wanted).square().mean() < 0.02**2 * wanted.square().mean()


@pytest.mark.parametrize("option", ["static-gate", "dynamic-gate", "temperature"])
def test_options_start_neutral(option: str) -> None:
    module = made("H6-G2-d10-shared-latent", option)
    x = inputs(2, 9, WIDTH, seed=4)
    with torch.no_grad():
        for name in ("gate", "gate_proj", "temperature"):
            if hasattr(module, name):
                getattr(module, name).zero_()
        plain = made("H6-G2-d10-shared-latent", "biases" if module.config.q_bias else "plain")
        plain.load_state_dict({**plain.state_dict(), **module.state_dict()}, strict=False)
        if module.config.q_bias:
            for name in ("k_geo_bias", "v_bias", "o_bias"):
                getattr(plain, name).zero_()
        torch.testing.assert_close(module(x, frame(x)), plain(x, frame(x)), rtol=0, atol=1e-13)


def test_null_attention_takes_its_share() -> None:
    module = made("H6-G2-d10-shared-latent", "null")
    x = inputs(1, 5, WIDTH, seed=5)
    rows = torch.arange(5)
    with torch.no_grad():
        module.null_bias.fill_(50.0)
        assert module.probabilities(x, rows, rows).sum(-1).max() < 1e-6
        module.null_bias.fill_(-50.0)
        torch.testing.assert_close(module.probabilities(x, rows, rows).sum(-1), torch.ones(1, 6, 5).double())


@pytest.mark.parametrize(("case", "option"), PAIRS)
def test_declared_weights_and_operations(case: str, option: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    module = made(case, option, torch.float32)
    declared = module.config.weights(WIDTH)
    state = module.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {name: w.shape for name, w in declared.items()}
    x = inputs(2, 16, WIDTH, seed=6, dtype=torch.float32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(x, frame(x))
    assert counter.get_total_flops() == module.config.cost(WIDTH, Shape(batch=2, tokens=16, context=16)).operations


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n_kv_heads": 4}, "n_kv_heads"),
        ({"head_dim": 9}, "head_dim"),
        ({"sem_dim": 0, "geo_dim": 0}, "sem_dim"),
        ({"geo_dim": 6}, "geo_dim"),
        ({"geo_dim": 24}, "geo_dim"),
        ({"rope": None}, "rope"),
        ({"rope": Rope(scaling="dynamic", factor=2.0, original_max_position_embeddings=8)}, "rope"),
        ({"k_layout": "per_head"}, "sem_dim"),
        ({"v_layout": "per_head"}, "v_dim"),
        ({"geo_layout": "shared", "geo_dim": 5}, "geo_dim"),
        ({"geo_layout": "shared", "geo_dim": 22}, "geo_dim"),
        ({"groups": 3}, "groups"),
        ({"groups": 2}, "geo_layout"),
        ({"groups": 2, "geo_layout": "shared", "k_layout": "per_head", "sem_dim": 6}, "k_layout"),
        ({"groups": 2, "geo_layout": "shared", "v_layout": "per_head", "v_dim": 8}, "v_layout"),
        ({"groups": 2, "geo_layout": "shared"}, "sem_dim"),
        ({"groups": 2, "geo_layout": "shared", "sem_dim": 6}, "v_dim"),
        ({"gate": "static", "sem_dim": 0}, "gate"),
        ({"tied_semantic": True, "sem_dim": 0}, "tied_semantic"),
        ({"window": 0}, "window"),
        ({"v_dim": 0}, "v_dim"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        DecoupledBottleneckAttention(**{**CASES["H6-G2-d10-shared-latent"], "rope": ROPE, **change})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sem_dim": 4}, "sem_dim"),
        ({"k_layout": "per_head"}, "k_layout"),
        ({"v_layout": "per_head", "v_dim": 8}, "v_layout"),
        ({"groups": 2, "v_dim": 8, "geo_dim": 8}, "groups"),
        ({"tied_semantic": True}, "tied_semantic"),
        ({"null": True}, "null"),
        ({"qk_norm_eps": 1e-6}, "qk_norm_eps"),
        ({"layout": "servable"}, "layout"),
        ({"geo_dim": 20}, "geo_dim"),
        ({"geo_dim": 0, "gate": "static"}, "gate"),
    ],
    ids=str,
)
def test_what_a_joint_latent_excludes_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        DecoupledBottleneckAttention(**{**CASES["H6-G2-joint"], "rope": ROPE, **change})
    assert caught.value.field == field


SERVABLE = CASES["servable"]


@pytest.mark.parametrize(
    ("change", "field", "setting"),
    [
        ({"geo_layout": "per_head", "groups": 1, "geo_dim": 24, "sem_dim": 6}, "geo_layout", "shared"),
        ({"k_layout": "per_head", "groups": 1}, "k_layout", "shared"),
        ({"v_layout": "per_head", "groups": 1}, "v_layout", "latent"),
        ({"tied_semantic": True}, "tied_semantic", "false"),
        ({"null": True}, "null", "false"),
        ({"gate": "dynamic"}, "gate", "static or none"),
        ({"v_dim": 24}, "v_dim", "30"),
        ({"sem_dim": 9, "v_dim": 27}, "sem_dim", "a multiple of 6"),
    ],
    ids=str,
)
def test_what_is_not_servable_says_which_setting_would_be(change: dict[str, Any], field: str, setting: str) -> None:
    with pytest.raises(InvalidValue, match="not servable") as caught:
        DecoupledBottleneckAttention(**{**SERVABLE, "rope": ROPE, **change})
    assert (caught.value.field, caught.value.expected) == (field, setting)
    DecoupledBottleneckAttention(**{**SERVABLE, "rope": ROPE, **change, "layout": "free"})
