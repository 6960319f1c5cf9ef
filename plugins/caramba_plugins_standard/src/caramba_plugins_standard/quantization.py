"""Quantizing the values of tokens in blocks.

Axes: B batch, T tokens, C values per token, n blocks per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]


def quantize(values: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Codes ``[B, T, bytes]``, and step and least value of each block ``[B, T, n, 2]``, of values ``[B, T, C]``.

    A value is ``least + step * code`` with codes ``0 .. 2^bits - 1``.  Steps and least values are rounded to float16
    before codes are chosen: a value comes back off by at most half a step plus that rounding, and must lie in float16's
    range (65504).
    """
    count = values.shape[2]
    block = min(block, count)
    padded = torch.cat([values, values[..., -1:].expand(*values.shape[:2], -count % block)], dim=2)
    wide = padded.to(torch.promote_types(padded.dtype, torch.float32))
    blocks = wide.view(*wide.shape[:2], -1, block)
    top = 2**bits - 1
    least = blocks.amin(-1).half()
    step = ((blocks.amax(-1) - least) / top).half()
    spread = torch.where(step > 0, step, 1.0).to(blocks.dtype)  # a block of equal values is its least value
    codes = ((blocks - least[..., None]) / spread[..., None]).round().clamp(0, top).to(torch.uint8)
    codes = codes.flatten(2)[..., :count]
    if bits == 4:  # two codes in a byte, the first in the low bits
        packed, odd = codes[..., ::2].clone(), codes[..., 1::2]
        packed[..., : odd.shape[-1]] |= odd << 4
        codes = packed
    # joined as float32: autocast in bfloat16 on a CPU stacks no float16
    return codes, torch.stack([step.float(), least.float()], dim=-1).half()


def dequantize(codes: Tensor, blocks: Tensor, count: int, bits: int, block: int) -> Tensor:
    """The ``count`` values of each token, ``[B, T, C]`` in float32, that :func:`quantize` stored."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(2)[..., :count]
    block = min(block, count)
    step, least = (part.repeat_interleave(block, -1)[..., :count] for part in blocks.float().unbind(-1))
    return torch.addcmul(least, step, codes)
