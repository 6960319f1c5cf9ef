"""One attention converted into another on random inputs: what the tests of the start share."""

from __future__ import annotations

from typing import Any

import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_upcycle.transplant import Calibrated, Started
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.nn.build import load_object
from caramba_core.nn.cache import LayerCache
from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule


def filled(config: Attention, width: int, seed: int, dtype: torch.dtype = torch.float64) -> ComponentModule:
    """The module of a config with random weights of a sensible size."""
    generator = torch.Generator().manual_seed(seed)
    module: ComponentModule = load_object(config.builds)(config, width).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = width**-0.5 if name.endswith("_proj") else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size)
        if isinstance(config, DecoupledBottleneckAttention) and config.pairs:
            half = config.head_dim // 2
            spread = half * -(-config.pairs // half)  # a shared key may turn with a frequency several times
            for row in module.pairs:  # type: ignore[union-attr]
                chosen = torch.randperm(spread, generator=generator) % half
                row.copy_(chosen[: config.pairs].sort().values)
    return module


def inputs(batch: int, tokens: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Activations with directions of very different size, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    spectrum = torch.logspace(0.5, -1.5, width, dtype=torch.float64)
    x = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64) * spectrum @ mixing
    return (x + 0.3 * mixing[0]).to(dtype)


def frame(x: Tensor, first: int = 0) -> Frame:
    """Positions ``first, first + 1, ...`` and no cache."""
    return Frame(positions=torch.arange(first, first + x.shape[1]))


def gather_moments(source: ComponentModule, config: Attention, target: Attention, x: Tensor) -> dict[str, Any]:
    """The moments that the transplant asks for, from the source's own probe."""
    results = {}
    for name, moment in GQAToDBA().moments(config, target).items():
        collector = load_object(moment.builds)(moment, config, x.shape[-1])
        with torch.no_grad():
            collector.update(source.probe(x, frame(x)))  # type: ignore[operator]
        results[name] = collector.result()
    return results


def calibrated(source: ComponentModule, config: Attention, target: Attention, x: Tensor) -> Calibrated:
    """The source as the calibration inputs ``x`` show it."""
    moments, weights = gather_moments(source, config, target, x), dict(source.named_parameters())
    return Calibrated(config=config, weights=weights, width=x.shape[-1], moments=moments)


def convert(
    source: ComponentModule, config: GroupedQueryAttention, target: DecoupledBottleneckAttention, x: Tensor
) -> tuple[ComponentModule, Started]:
    """The target's module, started from the source on the calibration inputs ``x``."""
    transplant = GQAToDBA()
    transplant.check(config, target, x.shape[-1])
    started = transplant.start(calibrated(source, config, target, x), target)
    module: ComponentModule = load_object(target.builds)(target, x.shape[-1]).to(x.dtype)
    with torch.no_grad():
        for name, weight in started.weights.items():
            getattr(module, name).copy_(weight)
    return module, started


class _OneLayer:
    """A cache of one layer."""

    def __init__(self, layer: LayerCache) -> None:
        self._layer = layer

    def layer(self, site: str, application: int = 0) -> LayerCache:
        return self._layer


def cached(
    module: ComponentModule, x: Tensor, chunks: tuple[int, ...], layer: LayerCache | None = None
) -> tuple[Tensor, LayerCache]:
    """What the module gives for ``x`` in chunks through a cache, which may hold earlier tokens."""
    assert isinstance(module.config, Attention)
    layer = layer or LayerCache(module.config.cache_spec(module.width), len(x), x.dtype, x.device)
    done, parts = 0, []
    for size in chunks:
        part = x[:, done : done + size]
        positions = torch.arange(layer.length, layer.length + size)
        parts.append(module(part, Frame(positions=positions, cache=_OneLayer(layer))))  # type: ignore[arg-type]
        done += size
        layer.length += size
    return torch.cat(parts, dim=1), layer
