"""Components with one fault each, which the kit must find."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from caramba_plugins_standard.probing import Probe
from torch import Tensor
from torch.nn import functional as F

from caramba_core.components import CacheEntry, Cost, Shape, Weight, component, option
from caramba_core.nn.frame import Frame
from tests.plugins.tiny import TinyAttention, TinyLinear
from tests.plugins.tiny_modules import TinyAttentionModule, TinyLinearModule

SOUND = TinyAttentionModule.forward


# ------------------------------------------------------------------------------------------------------ attentions


@component
class BrokenAttention(TinyAttention):
    """An attention with the fault of its name."""

    builds: ClassVar[str] = f"{__name__}:BrokenAttentionModule"

    fault: str = option(help="what is wrong with it")

    def weights(self, width: int) -> Mapping[str, Weight]:
        declared = dict(super().weights(width))
        if self.fault == "declares more weights":
            declared["extra"] = Weight(shape=(width,))
        return declared

    def cost(self, width: int, shape: Shape) -> Cost:
        cost = super().cost(width, shape)
        if self.fault == "forgets a projection":
            return cost + Cost(operations=-2 * shape.rows * width * width)
        if self.fault == "forgets the context in decoding":
            return super().cost(width, Shape(batch=shape.batch, tokens=shape.tokens, context=shape.tokens))
        return cost

    @property
    def takes_starts(self) -> bool:
        return self.fault == "sees padding"

    @property
    def takes_documents(self) -> bool:
        return self.fault == "sees other documents"

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        spec = dict(super().cache_spec(width))
        if self.fault == "declares a state that it never writes":
            spec["state"] = CacheEntry(shape=(3,), per_token=False)
        return spec


class BrokenAttentionModule(TinyAttentionModule):
    def __init__(self, config: BrokenAttention, width: int) -> None:
        super().__init__(config, width)
        self.fault = config.fault
        self.kept: list[Tensor] = []
        if self.fault == "draws at construction":
            self.scale = 1 + torch.rand(()).item()
        if self.fault == "declares more weights":
            del self.extra
        if self.fault == "owns an undeclared parameter":
            self.secret = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        return FORWARD.get(self.fault, SOUND)(self, x, frame)

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        return x

    def probe(self, x: Tensor, frame: Frame) -> Probe:
        output = SOUND(self, x, frame) * (2 if self.fault == "probes something else" else 1)
        looks_ahead = self.fault == "probes the future"
        seen = torch.ones(x.shape[1], x.shape[1]) if looks_ahead else torch.ones(x.shape[1], x.shape[1]).tril()
        probabilities = (seen / seen.sum(-1, keepdim=True)).expand(x.shape[0], 1, -1, -1)
        return Probe(x, x, x, x, probabilities, x, output, frame.positions)


def _looks_ahead(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    q, k, v = (F.linear(x, w) for w in (self.q_proj, self.k_proj, self.v_proj))
    return F.scaled_dot_product_attention(q, k, v) @ self.o_proj.T


def _blind(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, torch.ones_like(x), frame)


def _forgets_the_cache(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, Frame(positions=frame.positions))


def _never_forgets(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    if frame.cache is None:
        return SOUND(self, x, frame) + x.cumsum(1)
    if frame.cache.length == 0:
        self.kept = []
    before = sum((past.sum(1, keepdim=True) for past in self.kept), torch.zeros_like(x[:, :1]))
    self.kept.append(x)
    return SOUND(self, x, frame) + x.cumsum(1) + before


def _prefills_unrounded(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    mixed = SOUND(self, x, frame)
    first = frame.cache is not None and frame.cache.length == 0
    return SOUND(self, x, Frame(positions=frame.positions)) if first else mixed


def _counts_dimensions(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) * frame.positions.dim()


def _absolute(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) + frame.positions[..., None].to(x.dtype)


def _batch_norm(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) - x.mean(0, keepdim=True)


def _detached(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    q, k, v = (F.linear(x, w) for w in (self.q_proj.detach(), self.k_proj, self.v_proj))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True) @ self.o_proj.T


def _infinite_gradient(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    y = SOUND(self, x, frame)
    return y + (y - y.detach()).abs().sqrt()


def _half_inside(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x.half().to(x.dtype), frame)


def _always_float32(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame).float()


def _wrong_backward(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) + 0.1 * (x - x.detach())


def _cancels_badly(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) + 1e5 - 1e5


def _cancels(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x + 64, frame) - SOUND(self, torch.full_like(x, 64), frame)


def _scaled_at_construction(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) * self.scale


def _dice(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x, frame) * random.random()


def _asks_the_device(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    y = SOUND(self, x, frame)
    return y if y.sum().item() > 0 else y * 1.0


def _on_the_cpu(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x * torch.arange(x.shape[1])[:, None], frame)


def _written_anew(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    return SOUND(self, x * torch.tensor([1.0] * x.shape[2], device=x.device), frame)


def _hoards(self: BrokenAttentionModule, x: Tensor, frame: Frame) -> Tensor:
    if frame.cache is not None:
        self.kept.append(x)
    return SOUND(self, x, frame)


FORWARD: dict[str, Callable[[BrokenAttentionModule, Tensor, Frame], Tensor]] = {
    "looks ahead": _looks_ahead,
    "is blind": _blind,
    "forgets the cache": _forgets_the_cache,
    "never forgets": _never_forgets,
    "prefills unrounded": _prefills_unrounded,
    "minds the shape of positions": _counts_dimensions,
    "has absolute positions": _absolute,
    "normalizes over the batch": _batch_norm,
    "detaches": _detached,
    "has infinite gradients": _infinite_gradient,
    "computes in half": _half_inside,
    "always gives float32": _always_float32,
    "cancels": _cancels,
    "cancels badly": _cancels_badly,
    "goes back another way": _wrong_backward,
    "draws at construction": _scaled_at_construction,
    "draws from another generator": _dice,
    "asks the device": _asks_the_device,
    "makes tensors on the CPU": _on_the_cpu,
    "writes its frequencies anew": _written_anew,
    "hoards": _hoards,
}


# ---------------------------------------------------------------------------------------------------------- layers


@component
class BrokenLinear(TinyLinear):
    """A linear layer with the fault of its name."""

    builds: ClassVar[str] = f"{__name__}:BrokenLinearModule"

    fault: str = option(help="what is wrong with it")

    def output_width(self, width: int) -> int:
        return width + 1 if self.fault == "lies about its width" else super().output_width(width)

    def weights(self, width: int) -> Mapping[str, Weight]:
        return {"weight": Weight(shape=(width, width))}


class BrokenLinearModule(TinyLinearModule):
    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        assert isinstance(self.config, BrokenLinear)
        if self.config.fault == "mixes tokens":
            x = x.cumsum(dim=1)
        return F.linear(x, self.weight)


@component
class Undocumented(TinyLinear):
    """A layer with a field that says nothing of itself."""

    depth: int = option(default=1, help="")


@component
class Trusting(TinyLinear):
    """A layer that takes every setting."""

    depth: int = option(default=1, help="any number")


@component
class Blunt(TinyLinear):
    """A layer that refuses without a word about where."""

    depth: int = option(default=1, help="an even number")

    def __attrs_post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError("bad depth")


@component
class Misleading(TinyLinear):
    """A layer that blames another field."""

    depth: int = option(default=1, help="an even number")

    def __attrs_post_init__(self) -> None:
        from caramba_core.errors import InvalidValue

        if self.depth < 1:
            raise InvalidValue("width_out", "is wrong")
