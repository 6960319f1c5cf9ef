"""The kit against the components that are shipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from caramba_plugins_dba.attention import DecoupledBottleneckAttention as Dba
from caramba_plugins_standard.gqa import GroupedQueryAttention as Gqa
from caramba_plugins_standard.gqa import MultiHeadAttention as Mha

from caramba_core.rope import Rope
from caramba_core.testing import Case, TinyAttention, TinyLinear

ROPE = Rope(theta=10000.0)


@pytest.mark.components(
    Case(config=TinyAttention(n_heads=2), relative=True, bad_widths=(33,)),
    Case(config=TinyLinear(width_out=5)),
    Case(
        name="gqa", config=Gqa(n_heads=4, n_kv_heads=2, head_dim=8, rope=ROPE), relative=True, bad=({"n_kv_heads": 3},)
    ),
    Case(name="gqa_window", config=Gqa(n_heads=4, n_kv_heads=2, head_dim=8, rope=ROPE, window=5), relative=True),
    Case(
        name="gqa_options",
        config=Gqa(n_heads=4, n_kv_heads=1, head_dim=6, rope=ROPE, qkv_bias=True, o_bias=True, qk_norm_eps=1e-6),
    ),
    Case(name="mha", config=Mha(n_heads=3, head_dim=8, rope=ROPE), width=24, relative=True),
    Case(
        name="dba_shared",
        config=Dba(n_heads=4, n_kv_heads=2, head_dim=16, sem_dim=12, geo_dim=16, v_dim=20, rope=ROPE, o_bias=True),
        relative=True,
    ),
    Case(
        name="dba_per_head",
        config=Dba(
            n_heads=4,
            n_kv_heads=2,
            head_dim=16,
            sem_dim=8,
            geo_dim=8,
            v_dim=16,
            rope=ROPE,
            k_layout="per_head",
            v_layout="per_head",
            q_bias=True,
            k_bias=True,
            v_bias=True,
        ),
        relative=True,
    ),
    Case(name="dba_semantic", config=Dba(n_heads=4, n_kv_heads=2, head_dim=16, sem_dim=8, geo_dim=0, v_dim=16)),
    Case(
        name="dba_geometric",
        config=Dba(n_heads=4, n_kv_heads=2, head_dim=16, sem_dim=0, geo_dim=32, v_dim=32, rope=ROPE),
    ),
)
def test_attention(component_check: Callable[[], None]) -> None:
    component_check()
