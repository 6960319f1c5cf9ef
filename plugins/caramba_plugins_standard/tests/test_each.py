"""Fields with a value of their own in each repetition."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from caramba_plugins_standard.fans import Parallel
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.components import Model
from caramba_core.errors import InvalidValue
from caramba_core.lowering import lower

BLOCK = (
    Residual(layers=(RMSNorm(), GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=4, rope=Rope()))),
    Residual(layers=(RMSNorm(), SwiGLU(d_ff=8))),
    Residual(name="last", layers=(RMSNorm(), SwiGLU(name="own", d_ff=8))),
    Parallel(layers=(SwiGLU(d_ff=8), SwiGLU(d_ff=8))),
)


def values(path: str, each: dict[str, tuple[Any, ...]], node: str) -> list[Any]:
    nested = Nested(name="blocks", repeat=3, layers=BLOCK, each=each)
    model = Model(
        head=LinearHead(), embedder=TokenEmbedder(vocab_size=9, d_model=6), topology=Stacked(layers=(nested,))
    )
    nodes = lower(model).nodes()
    found = []
    for index in range(3):
        value: Any = nodes[f"model.blocks.{index}.{node}"].config
        for part in path.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


@pytest.mark.parametrize(
    ("node", "field", "given"),
    [
        ("attention", "window", (None, 3, 4)),
        ("attention", "n_heads", (4, 6, 2)),
        ("attention", "rope.theta", (1e4, 2e4, 1e5)),
        ("norm", "eps", (1e-3, 1e-4, 1e-5)),
        ("norm_2", "eps", (1e-3, 1e-4, 1e-5)),
        ("mlp", "d_ff", (1, 2, 3)),
        ("mlp", "bias", (True, False, True)),
        ("last.own", "d_ff", (1, 2, 3)),
        ("last.norm", "eps", (1e-3, 1e-4, 1e-5)),
        ("parallel", "combine", ("sum", "mean", "sum")),
        ("norm", "eps", (0.1, 1e-3, 1e-5)),
    ],
)
def test_each_repetition_gets_its_value(node: str, field: str, given: tuple[Any, ...]) -> None:
    assert values(field, {f"{node}.{field}": given}, node) == list(given)


def test_several_fields_and_everything_else_stays() -> None:
    each = {"attention.window": (1, 2, 3), "mlp.d_ff": (4, 5, 6), "attention.scale": (0.1, 0.2, 0.3)}
    assert values("window", each, "attention") == [1, 2, 3]
    assert values("scale", each, "attention") == [0.1, 0.2, 0.3]
    assert values("d_ff", each, "mlp") == [4, 5, 6]
    assert values("d_ff", each, "last.own") == [8, 8, 8]
    assert values("eps", each, "norm_2") == [1e-5] * 3


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ({"mlp.d_ff": (1, 2)}, ["mlp.d_ff has 2 values", "3 values"]),
        ({"mlp.d_fff": (1, 2, 3)}, ["d_fff", "d_ff"]),
        ({"mpl.d_ff": (1, 2, 3)}, ["mpl", "mlp"]),
        ({"mlp": (1, 2, 3)}, ["mlp", "NODE.FIELD"]),
        ({"mlp.": (1, 2, 3)}, ["NODE.FIELD"]),
        ({"mlp.name": ("a", "b", "c")}, ["name"]),
        ({"mlp.d_ff": (1, 2, "3")}, ["'3'", "an integer"]),
        ({"mlp.d_ff": (1, 2, True)}, ["True", "an integer"]),
        ({"mlp.d_ff": (1, 2, 0)}, ["mlp.d_ff", "below 1"]),
        ({"attention.n_kv_heads": (1, 2, 3)}, ["attention.n_kv_heads", "does not divide"]),
        ({"attention.window": (1, None, 2.5)}, ["2.5", "an integer or null"]),
        ({"attention.rope": (None, 1, 2)}, ["1"]),
        ({"attention.rope.thet": (1, 2, 3)}, ["thet", "theta"]),
        ({"attention.window.x": (1, 2, 3)}, ["no fields of its own"]),
        ({"last.own": (1, 2, 3)}, ["NODE.FIELD"]),
        ({"last.mlp.d_ff": (1, 2, 3)}, ["mlp", "own"]),
        ({"parallel.0.mlp.d_ff": (1, 2, 3)}, ["parallel.0.mlp.d_ff"]),
        ({"parallel.combine": ("sum", "mean", "product")}, ["product"]),
        ({"norm.eps": (1e-5, float("nan"), 1e-5)}, ["nan", "a number"]),
    ],
)
def test_mistakes_are_explained(each: dict[str, tuple[Any, ...]], words: list[str]) -> None:
    with pytest.raises(InvalidValue) as caught:
        Nested(name="blocks", repeat=3, layers=BLOCK, each=each)
    assert caught.value.field == "each"
    text = f"{caught.value} {caught.value.expected}"
    assert all(word in text for word in words), text


def test_configs_import_neither_torch_nor_numpy() -> None:
    modules = ["layers", "gqa", "topologies", "fans", "each"]
    modules += ["datasets", "optimizers", "schedules", "pretrain"]
    code = "; ".join(f"import caramba_plugins_standard.{name}" for name in modules)
    code += "; import sys, caramba_plugins_standard.rope; print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
