"""A small plugin with the shapes that matter to the reader; its names and fields never change under the snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from caramba_plugins_eval.mode import Evaluate  # noqa: F401 - named by entries
from caramba_plugins_standard.modes import Generate, Train  # noqa: F401 - named by entries
from caramba_plugins_standard.training import Optimizer, Strategy

from caramba_core.components import Attention, Component, Embedder, Head, Layer, Topology, component, option
from caramba_core.datasets import Dataset
from caramba_core.errors import InvalidValue
from caramba_core.modes import Need, Run

SMALL = Path(__file__).parent / "presets" / "small.yml"
LOST = SMALL.with_name("lost.yml")


@component
class Rotary:
    theta: float = option(default=10000.0, help="base of the frequencies", above=1.0)
    scaling: Literal["none", "linear"] = option(default="none", help="how frequencies are scaled")
    factor: float | None = option(default=None, help="how far", minimum=1.0)


@component
class Norm(Layer):
    role: ClassVar[str] = "norm"
    builds: ClassVar[str] = "nowhere:Norm"
    eps: float = option(default=1e-5, help="added to the mean square", above=0.0)


@component
class Mlp(Layer):
    role: ClassVar[str] = "mlp"
    builds: ClassVar[str] = "nowhere:Mlp"
    d_ff: int = option(help="hidden width", unit="features", minimum=1)
    bias: bool = option(default=False, help="add offsets")


@component
class Grouped(Attention):
    builds: ClassVar[str] = "nowhere:Grouped"
    n_heads: int = option(help="query heads", minimum=1)
    n_kv_heads: int = option(help="key/value heads", minimum=1)
    head_dim: int = option(help="width of a head", minimum=2)
    rope: Rotary | None = option(default=None, help="rotary positions")
    window: int | Literal["all"] = option(default="all", help="tokens that a token sees")
    shares: tuple[float, float] = option(default=(0.5, 0.5), help="two parts of a whole")

    def __attrs_post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise InvalidValue("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads ({self.n_heads})")
        if self.rope is not None and self.rope.scaling == "linear" and self.rope.factor is None:
            raise InvalidValue("rope", "linear scaling needs a factor", within=("scaling",))


@component
class Chain(Topology):
    layers: tuple[Layer, ...] = option(help="the layers, in order")


@component
class Repeated(Chain):
    repeat: int = option(default=1, help="how many times", minimum=1)
    each: Mapping[str, tuple[Any, ...]] = option(factory=dict, help="values by repetition")

    def __attrs_post_init__(self) -> None:
        for path, values in self.each.items():
            if len(values) != self.repeat:
                raise InvalidValue(
                    "each", f"has {len(values)} values", expected=f"{self.repeat} values", within=(path,)
                )


@component
class Tokens(Embedder):
    d_model: int = option(help="width", unit="features", minimum=1)


@component
class Linear(Head):
    pass


@component
class Array(Dataset):
    path: str = option(help="a token array")


@component
class Text(Dataset):
    path: str = option(help="a text file")


@component
class Distill(Strategy):
    needs_teacher: ClassVar[bool] = True
    temperature: float = option(default=1.0, help="of the softmax", above=0.0)


@component
class Pretrain(Strategy):
    pass


@component
class Adam(Optimizer):
    betas: tuple[float, ...] = option(default=(0.9, 0.95), help="decay of the moments")


class NoConfig:
    """What a broken plugin might register."""


@component
class Transplant(Component):
    kind: ClassVar[str] = "transplant"


@component
class Start:
    transplant: Transplant | None = option(default=None, help="how one attention starts from the other")
    tokens: int = option(default=1, help="calibration tokens", minimum=1)
    batch_size: int = option(default=4, help="windows per pass", minimum=1)


@component
class Convert(Run):
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "data.train"})
    start: Start | None = option(default=None, help="how the attentions start")


CATALOGUE = {"attention": {"mla": "caramba-plugin-mla"}, "preset": {"famous": "caramba-plugin-famous"}}
