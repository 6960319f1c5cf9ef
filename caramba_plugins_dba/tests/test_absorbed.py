"""A servable attention as an ordinary one: the same outputs, spelled out with one list of frequencies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from caramba_plugins_dba.absorbed import Absorbed, absorbed
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_standard.rope import Rope
from dba_conversion import filled, frame, inputs
from torch import Tensor

from caramba_core.errors import InvalidValue
from caramba_core.nn.module import ComponentModule

WIDTH = 19
SHARED = {"layout": "servable", "geo_layout": "shared"}
SHAPES: dict[str, dict[str, Any]] = {
    "H9-G3-d10": {"n_heads": 9, "n_kv_heads": 3, "head_dim": 10, "geo_dim": 14, "sem_dim": 6, "v_dim": 20},
    "H8-G4-groups2": {
        "n_heads": 8,
        "n_kv_heads": 4,
        "head_dim": 6,
        "groups": 2,
        "geo_dim": 12,
        "sem_dim": 8,
        "v_dim": 20,
    },
    "rotary-only": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "geo_dim": 6, "sem_dim": 0, "v_dim": 6},
    "semantic-only": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "geo_dim": 0, "sem_dim": 6, "v_dim": 6},
}
YARN = Rope(theta=100.0, scaling="yarn", factor=4.0, original_max_position_embeddings=8)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), True),
    "v_bias": {"v_bias": True},
    "temperature": {"temperature": True, "scale": 0.3},
    "yarn": {"rope": YARN, "q_bias": True},
}


def made(shape: str, **options: Any) -> tuple[DecoupledBottleneckAttention, ComponentModule]:
    config = DecoupledBottleneckAttention(**{"rope": Rope(theta=100.0), **SHARED, **SHAPES[shape], **options})
    module = filled(config, WIDTH, seed=len(shape))
    if config.pairs:
        module.pairs.copy_(module.pairs[:1].expand_as(module.pairs))  # type: ignore[operator]
    return config, module


def ordinary(form: Absorbed, x: Tensor) -> Tensor:
    """Grouped-query attention as every library has it: one rotation of whole heads, ``[B, T, D] -> [B, T, D]``."""
    angles = torch.arange(x.shape[1])[:, None] * torch.tensor(form.frequencies, dtype=torch.float64)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def heads(name: str) -> Tensor:
        part = F.linear(x, form.weights[f"{name}_proj"], form.weights.get(f"{name}_bias"))
        return part.unflatten(-1, (-1, form.width)).transpose(1, 2)

    def turned(part: Tensor) -> Tensor:
        first, second = part.chunk(2, dim=-1)
        return part * cos + torch.cat([-second, first], dim=-1) * sin

    share = form.heads // form.groups
    query, key = turned(heads("q")), turned(heads("k")).repeat_interleave(share, dim=1)
    scores = (query @ key.transpose(-1, -2) * form.width**-0.5).masked_fill(
        torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf
    )
    y = scores.softmax(-1) @ heads("v").repeat_interleave(share, dim=1)
    return F.linear(y.transpose(1, 2).flatten(2), form.weights["o_proj"], form.weights.get("o_bias"))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_absorbed_form_computes_the_same(shape: str, option: str) -> None:
    config, module = made(shape, **OPTIONS[option])
    x = inputs(2, 13, WIDTH, seed=3)
    form = absorbed(config, module.state_dict())
    assert (form.heads, form.groups, form.width) == (config.n_heads, config.groups, config.v_dim // config.groups)
    values = config.cache_spec(WIDTH).values()
    assert sum(entry.values for entry in values) == 2 * form.groups * form.width
    with torch.no_grad():
        torch.testing.assert_close(ordinary(form, x), module(x, frame(x)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", ["H9-G3-d10", "H8-G4-groups2"])
def test_a_static_gate_goes_into_the_queries(shape: str) -> None:
    config, module = made(shape, gate="static")
    x = inputs(2, 13, WIDTH, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(
            ordinary(absorbed(config, module.state_dict()), x), module(x, frame(x)), rtol=0, atol=1e-10
        )


def test_what_has_no_ordinary_form_is_refused() -> None:
    config, module = made("H9-G3-d10")
    with pytest.raises(InvalidValue, match="free"):
        absorbed(DecoupledBottleneckAttention(**{**SHAPES["H9-G3-d10"], "geo_dim": 12, "rope": YARN}), {})
    config, module = made("H8-G4-groups2")
    module.pairs[1] = module.pairs[0].flip(0)  # type: ignore[index]
    with pytest.raises(InvalidValue, match="different frequencies"):
        absorbed(config, module.state_dict())
