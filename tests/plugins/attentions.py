"""A few settings of every attention that is shipped: what the kit is run against, and the table in the docs shows."""

from __future__ import annotations

from typing import Any

from caramba_plugins_standard.rope import Rope
from caramba_plugins_testing import Case

from caramba_core.plugins.registry import registry

__all__ = ["CASES"]

ROPE = Rope(theta=10000.0)
GROUPS: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": ROPE}
IN_FLOAT32 = {"decoding_tolerance": 1e-6}
"""For states that are kept in float32 whatever the model's type is."""
DBA: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16}


def _case(
    type_: str, name: str = "", *, width: int = 32, tokens: int = 12, case: dict[str, Any] | None = None, **fields: Any
) -> Case:
    """A case of an installed attention by its name in a manifest."""
    config = registry().load(registry().find(("attention",), type_))(**fields)
    full = f"{type_} {name}".strip()
    return Case(config=config, name=full, width=width, tokens=tokens, **{"relative": True, **(case or {})})


CASES: tuple[Case, ...] = (
    _case("mha", width=24, n_heads=3, head_dim=8, rope=ROPE),
    _case("gqa", **GROUPS, case={"bad": ({"n_kv_heads": 3}, {"head_dim": 7})}),
    _case("gqa", "window", **GROUPS, window=5),
    _case("gqa", "bias, norms", **GROUPS, qkv_bias=True, o_bias=True, qk_norm_eps=1e-6),
    _case("gqa", "norms over all heads", **GROUPS, qk_norm_eps=1e-6, qk_norm_span="all", qk_norm_offset=1.0),
    _case("gqa", "a part turns", **{**GROUPS, "rope": Rope(theta=10000.0, rotated=4)}),
    _case("dba", "shared", **DBA, sem_dim=12, geo_dim=16, v_dim=20, rope=ROPE, o_bias=True),
    _case(
        "dba",
        "per head",
        **DBA,
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
    _case("dba", "semantic only", **DBA, sem_dim=8, geo_dim=0, v_dim=16),
    _case("dba", "rotary only", **DBA, sem_dim=0, geo_dim=32, v_dim=32, rope=ROPE),
    _case(
        "dba",
        "gate, temperature, window",
        **{**DBA, "sem_dim": 12, "geo_dim": 16, "v_dim": 20, "rope": ROPE},
        gate="dynamic",
        temperature=True,
        window=5,
    ),
    _case("dba", "null", **DBA, sem_dim=12, geo_dim=16, v_dim=20, rope=ROPE, null=True, gate="static", v_bias=True),
    _case("dba", "norms", **DBA, sem_dim=12, geo_dim=16, v_dim=20, rope=ROPE, qk_norm_eps=1e-6, qk_norm_span="all"),
    _case("dba", "joint", **DBA, latent="joint", geo_layout="shared", sem_dim=0, geo_dim=16, v_dim=20, rope=ROPE),
    _case("dba", "joint alone", **DBA, latent="joint", sem_dim=0, geo_dim=0, v_dim=20, o_bias=True),
    _case("dba", "tied", **DBA, sem_dim=12, geo_dim=16, v_dim=20, rope=ROPE, tied_semantic=True),
    _case("mla", n_heads=4, n_kv_heads=2, head_dim=8, rank=16, rope_dim=4, rope=ROPE),
    _case(
        "mla", "norm, bias", n_heads=4, head_dim=8, rank=12, rope_dim=0, latent_norm_eps=1e-6, q_bias=True, o_bias=True
    ),
    _case("sliding_window", **GROUPS, window=4, sinks=2),
    _case("sliding_window", "no sinks", **GROUPS, window=5, sinks=0, qkv_bias=True, o_bias=True),
    _case("sliding_window", "positions in the cache", **GROUPS, window=4, sinks=2, sink_positions="cache"),
    _case("linear_attention", **GROUPS, features=6, window=4, sinks=2, case=IN_FLOAT32),
    _case(
        "linear_attention", "state alone", **{**GROUPS, "rope": None}, features=6, window=0, sinks=0, case=IN_FLOAT32
    ),
    _case("alibi", n_heads=4, case={"bad_widths": (30,)}),
)
