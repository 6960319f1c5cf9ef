"""One attention converted into another on random inputs: what the tests of the start share."""

from __future__ import annotations

from typing import Any

import torch
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_mla.module import MultiHeadLatentModule
from caramba_plugins_mla.transplant import GQAToMLA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule
from caramba_plugins_upcycle.transplant import Calibrated, Started
from torch import Tensor

from caramba_core.nn.build import load_object
from caramba_core.nn.frame import Frame

WIDTH = 40


def teacher(config: GroupedQueryAttention, seed: int = 1) -> GroupedQueryAttentionModule:
    """A source with random weights of a sensible size, in float64."""
    module = GroupedQueryAttentionModule(config, WIDTH).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = WIDTH**-0.5 if name.endswith("_proj") else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size)
    return module


def inputs(batch: int, tokens: int, seed: int) -> Tensor:
    """Activations with directions of very different size, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    spectrum = torch.logspace(0.5, -1.5, WIDTH, dtype=torch.float64)
    x = torch.randn(batch, tokens, WIDTH, generator=generator, dtype=torch.float64) * spectrum @ mixing
    shifted: Tensor = x + 0.3 * mixing[0]
    return shifted


def frame(x: Tensor, first: int = 0) -> Frame:
    """Positions ``first, first + 1, ...`` and no cache."""
    return Frame(positions=torch.arange(first, first + x.shape[1]))


@torch.no_grad()
def moments(source: GroupedQueryAttentionModule, target: MultiHeadLatentAttention, x: Tensor) -> dict[str, Any]:
    """What the transplant asks for, from the source's own probe."""
    assert isinstance(source.config, GroupedQueryAttention)
    collected = {}
    for name, moment in GQAToMLA().moments(source.config, target).items():
        collector = load_object(moment.builds)(moment, source.config, WIDTH)
        collector.update(source.probe(x, frame(x)))
        collected[name] = collector.result()
    return collected


@torch.no_grad()
def convert(
    source: GroupedQueryAttentionModule, target: MultiHeadLatentAttention, x: Tensor
) -> tuple[MultiHeadLatentModule, Started]:
    """The target's module, started from the source on calibration inputs ``x``."""
    transplant = GQAToMLA()
    assert isinstance(source.config, GroupedQueryAttention)
    transplant.check(source.config, target, WIDTH)
    gathered, weights = moments(source, target, x), source.state_dict()
    seen = Calibrated(config=source.config, weights=weights, width=WIDTH, moments=gathered)
    started = transplant.start(seen, target)
    module = MultiHeadLatentModule(target, WIDTH).double()
    module.load_state_dict(dict(started.weights))
    return module, started
