# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return, attr-defined"
"""Attention of one new token of each sequence to its cache as stored, split over the context, in Triton.

A program reads one split of one sequence's tokens once, for all query heads that share what it reads, and keeps a
running softmax (FlashAttention, arXiv 2205.14135; "flash-decoding" splits the context); a second kernel merges the
splits by their log-sum-exp.  Codes of quantized caches are dequantized in registers, tile by tile, or multiplied as
they are and scaled afterwards (:mod:`.coded`).

Axes: B batch, U units (groups of query heads that read the same values), M query heads of a unit, S places of the
cache, w width of a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from caramba_plugins_standard.decoding.coded import split_coded

__all__ = ["Tiling", "attend_splits"]

_LOG2_E: Final = 1.4426950408889634

_WIDEST: Final = 256
"""Columns of the values that a program accumulates."""

_FEW: Final = 16
"""Splits that a program merges one after the other."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the split kernel is launched: tokens of a tile, warps, stages of prefetching, programs a multiprocessor.

    ``units`` of them share a program where scales stay out of the products (:mod:`.coded`).
    """

    tile: int = 64
    warps: int = 4
    stages: int = 4
    programs: int = 2
    units: int = 1


# A code as a number: 0x6400 | code is 1024 + code in float16.  Four codes of a register at a time; the numbers are then
# laid out for the tensor cores as 16-bit values, which as bytes they could only be one by one (is_pure=False keeps the
# compiler from doing so).
_OF_BYTES: tl.constexpr = tl.constexpr("""{
    .reg .b32 low, high, base;
    mov.b32 base, 0x64006400;
    prmt.b32 low, $2, 0x64646464, 0x4140;
    prmt.b32 high, $2, 0x64646464, 0x4342;
    sub.rn.f16x2 low, low, base;
    sub.rn.f16x2 high, high, base;
    fma.rn.f16x2 $0, low, $3, $5;
    fma.rn.f16x2 $1, high, $4, $6;
}""")
_OF_HALVES: tl.constexpr = tl.constexpr("""{
    .reg .b32 even, odd, low, high, base;
    mov.b32 base, 0x64006400;
    and.b32 even, $4, 0x0f0f0f0f;
    shr.u32 odd, $4, 4;
    and.b32 odd, odd, 0x0f0f0f0f;
    prmt.b32 low, even, 0x64646464, 0x4140;
    prmt.b32 high, even, 0x64646464, 0x4342;
    sub.rn.f16x2 low, low, base;
    sub.rn.f16x2 high, high, base;
    fma.rn.f16x2 $0, low, $5, $7;
    fma.rn.f16x2 $1, high, $6, $8;
    prmt.b32 low, odd, 0x64646464, 0x4140;
    prmt.b32 high, odd, 0x64646464, 0x4342;
    sub.rn.f16x2 low, low, base;
    sub.rn.f16x2 high, high, base;
    fma.rn.f16x2 $2, low, $5, $7;
    fma.rn.f16x2 $3, high, $6, $8;
}""")


@triton.jit
def _scales(blocks, near, ok, stride, first, N: tl.constexpr, COUNT):
    """Step and least value of ``N`` blocks of each token, float16 ``[N, T, 1]``; both lie in one 32-bit word."""
    j = tl.arange(0, N)
    word = tl.load(
        blocks + near[None, :] * stride + first + j[:, None], mask=ok[None, :] & (j < COUNT)[:, None], other=0
    )
    step = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return step[:, :, None], ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)[:, :, None]


@triton.jit
def _values(
    part,
    blocks,
    near,
    ok,
    stride,
    blocks_stride,
    offset,
    first,
    W,
    P: tl.constexpr,
    FULL: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    PTX: tl.constexpr,
    dtype: tl.constexpr,
):
    """Columns ``first`` to ``first + W`` of tokens, ``[T, P]`` (8-bit codes dequantized), stored from ``offset`` on."""
    if BITS == 16:
        column = tl.arange(0, P)
        here = ok[:, None]
        if not FULL:
            here = here & (column < W)[None, :]
        value = tl.load(part + near[:, None] * stride + (offset + column)[None, :], mask=here, other=0.0)
    elif ALIGNED:
        j = tl.arange(0, P // BLOCK)
        column = j[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        here = ok[None, :, None]
        if not FULL:
            here = here & (column < W)[:, None, :]
        code = tl.load(part + near[None, :, None] * stride + (offset + column)[:, None, :], mask=here, other=0)
        step, least = _scales(blocks, near, ok, blocks_stride, first // BLOCK, P // BLOCK, tl.cdiv(W, BLOCK))
        if PTX and dtype == tl.float16:
            step, _ = tl.broadcast(step, code)
            least, _ = tl.broadcast(least, code)
            blockwise = tl.inline_asm_elementwise(
                _OF_BYTES, "=r,=r,r,r,r,r,r", [code, step, least], dtype=tl.float16, is_pure=False, pack=4
            )
        else:
            blockwise = code.to(dtype) * step.to(dtype) + least.to(dtype)
        value = tl.reshape(tl.permute(blockwise, (1, 0, 2)), [near.shape[0], P])
    else:
        column = tl.arange(0, P)
        here = ok[:, None] & (column < W)[None, :]
        code = tl.load(part + near[:, None] * stride + (offset + column)[None, :], mask=here, other=0)
        word = tl.load(
            blocks + near[:, None] * blocks_stride + ((first + column) // BLOCK)[None, :], mask=here, other=0
        )
        value = _dequantized(code, word, dtype)
    return value


@triton.jit
def _halves(
    part,
    blocks,
    near,
    ok,
    stride,
    blocks_stride,
    offset,
    first,
    W,
    P: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    PTX: tl.constexpr,
    dtype: tl.constexpr,
):
    """The same of 4-bit codes, two of which share a byte: even columns and odd columns, ``[T, P / 2]`` each."""
    if ALIGNED:
        j = tl.arange(0, P // BLOCK)
        byte = j[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
        here = ok[None, :, None]
        if not FULL:
            here = here & (byte < (W + 1) // 2)[:, None, :]
        pair = tl.load(part + near[None, :, None] * stride + (offset + byte)[:, None, :], mask=here, other=0)
        step, least = _scales(blocks, near, ok, blocks_stride, first // BLOCK, P // BLOCK, tl.cdiv(W, BLOCK))
        if PTX and dtype == tl.float16:
            step, _ = tl.broadcast(step, pair)
            least, _ = tl.broadcast(least, pair)
            even, odd = tl.inline_asm_elementwise(
                _OF_HALVES,
                "=r,=r,=r,=r,r,r,r,r,r",
                [pair, step, least],
                dtype=(tl.float16, tl.float16),
                is_pure=False,
                pack=4,
            )
        else:
            step, least = step.to(dtype), least.to(dtype)
            even, odd = (pair & 15).to(dtype) * step + least, (pair >> 4).to(dtype) * step + least
        even = tl.reshape(tl.permute(even, (1, 0, 2)), [near.shape[0], P // 2])
        odd = tl.reshape(tl.permute(odd, (1, 0, 2)), [near.shape[0], P // 2])
    else:
        byte = tl.arange(0, P // 2)
        here = ok[:, None] & (byte < (W + 1) // 2)[None, :]
        pair = tl.load(part + near[:, None] * stride + (offset + byte)[None, :], mask=here, other=0)
        at = blocks + near[:, None] * blocks_stride
        even_word = tl.load(at + ((first + 2 * byte) // BLOCK)[None, :], mask=here, other=0)
        odd_here = here & (2 * byte + 1 < W)[None, :]
        odd_word = tl.load(at + ((first + 2 * byte + 1) // BLOCK)[None, :], mask=odd_here, other=0)
        even, odd = _dequantized(pair & 15, even_word, dtype), _dequantized(pair >> 4, odd_word, dtype)
    return even, odd


@triton.jit
def _dequantized(code, word, dtype: tl.constexpr):
    step = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    least = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return (code.to(tl.float32) * step + least).to(dtype)


@triton.jit
def _query(at, present, first, W: tl.constexpr, P: tl.constexpr, EVERY: tl.constexpr, dtype: tl.constexpr):
    """Columns of the queries from ``first`` on, all or every second one: ``[M, P / EVERY]``."""
    column = first + EVERY * tl.arange(0, P // EVERY)
    return tl.load(at + column[None, :], mask=present[:, None] & (column < W)[None, :], other=0.0).to(dtype)


@triton.jit
def _split(
    Q,
    A,
    A_blocks,
    B,
    B_blocks,
    V,
    V_blocks,
    First,
    Ends,
    Partial,
    Lse,
    q_b,
    q_u,
    q_m,
    a_b,
    a_s,
    a_u,
    ab_b,
    ab_s,
    b_b,
    b_s,
    b_u,
    bb_b,
    bb_s,
    v_b,
    v_s,
    v_u,
    vb_b,
    vb_s,
    scale,
    window,
    sinks,
    splits,
    U: tl.constexpr,
    M: tl.constexpr,
    WA: tl.constexpr,
    WB: tl.constexpr,
    WV: tl.constexpr,
    PM: tl.constexpr,
    PA: tl.constexpr,
    PB: tl.constexpr,
    PV: tl.constexpr,
    TILE: tl.constexpr,
    BITS: tl.constexpr,
    A_BLOCK: tl.constexpr,
    B_BLOCK: tl.constexpr,
    V_BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    PTX: tl.constexpr,
    HEAD_TILES: tl.constexpr,
    A_OWN: tl.constexpr,
    B_OWN: tl.constexpr,
    V_OWN: tl.constexpr,
    RING: tl.constexpr,
    JOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Output and log-sum-exp (base 2) of a split: keys are the parts ``A`` and ``B``; values ``V``, or ``B`` again."""
    split = tl.program_id(0)
    unit = tl.program_id(1) % U
    rows = (tl.program_id(1) // U % HEAD_TILES) * PM + tl.arange(0, PM)
    v_first = 0 if WV <= PV else (tl.program_id(1) // U // HEAD_TILES) * PV
    present = rows < M
    batch = tl.program_id(2).to(tl.int64)
    PER_ITEM: tl.constexpr = 2 if BITS == 4 else 1
    dtype: tl.constexpr = Q.dtype.element_ty if BITS == 16 or Q.dtype.element_ty == tl.float32 else tl.float16
    first = tl.load(First + batch).to(tl.int32)
    ends = tl.load(Ends + batch).to(tl.int32)
    held = tl.minimum(ends, window) if RING else ends
    start = 0 * first if RING else (first // TILE) * TILE
    span = tl.cdiv(tl.cdiv(held - start, splits), TILE) * TILE
    low = start + split * span
    high = tl.minimum(low + span, held)

    q = Q + batch * q_b + unit * q_u + rows[:, None] * q_m
    if BITS == 4:
        if WA > 0:
            a_even, a_odd = _query(q, present, 0, WA, PA, 2, dtype), _query(q, present, 1, WA, PA, 2, dtype)
        if WB > 0:
            b_even = _query(q + WA, present, 0, WB, PB, 2, dtype)
            b_odd = _query(q + WA, present, 1, WB, PB, 2, dtype)
        even = tl.zeros([PM, PV // 2], dtype=tl.float32)
        odd = tl.zeros([PM, PV // 2], dtype=tl.float32)
    else:
        if WA > 0:
            a_query = _query(q, present, 0, WA, PA, 1, dtype)
        if WB > 0:
            b_query = _query(q + WA, present, 0, WB, PB, 1, dtype)
        mixed = tl.zeros([PM, PV], dtype=tl.float32)
    top = tl.full([PM], -1.0e29, dtype=tl.float32)  # above any score that is not seen
    total = tl.zeros([PM], dtype=tl.float32)

    for s0 in tl.range(low, high, TILE, num_stages=STAGES):
        near = tl.arange(0, TILE)
        s = s0 + near
        far = batch * 0 + s0  # 64 bits
        ok = s < high
        if RING:  # a place behind the sinks holds the last token that was written there
            text = tl.where((s < sinks) | (ends <= window), s, ends - 1 - (ends - 1 - s) % (window - sinks))
            seen = ok & (text >= first)
        else:
            seen = ok & (s >= first)
        scores = tl.zeros([PM, TILE], dtype=tl.float32)
        a_at, a_scales = A + batch * a_b + far * a_s, A_blocks + batch * ab_b + far * ab_s
        b_at, b_scales = B + batch * b_b + far * b_s, B_blocks + batch * bb_b + far * bb_s
        v_at, v_scales = V + batch * v_b + far * v_s, V_blocks + batch * vb_b + far * vb_s
        if BITS == 4:
            if WA > 0:
                k0, k1 = _halves(
                    a_at,
                    a_scales,
                    near,
                    ok,
                    a_s,
                    ab_s,
                    unit * a_u,
                    unit * WA * A_OWN,
                    WA,
                    PA,
                    WA == PA,
                    A_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
                scores = tl.dot(a_even, tl.trans(k0), scores, input_precision=PRECISION)
                scores = tl.dot(a_odd, tl.trans(k1), scores, input_precision=PRECISION)
            if WB > 0:
                k2, k3 = _halves(
                    b_at,
                    b_scales,
                    near,
                    ok,
                    b_s,
                    bb_s,
                    unit * b_u,
                    unit * WB * B_OWN,
                    WB,
                    PB,
                    WB == PB,
                    B_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
                scores = tl.dot(b_even, tl.trans(k2), scores, input_precision=PRECISION)
                scores = tl.dot(b_odd, tl.trans(k3), scores, input_precision=PRECISION)
        else:
            if WA > 0:
                a_key = _values(
                    a_at,
                    a_scales,
                    near,
                    ok,
                    a_s,
                    ab_s,
                    unit * a_u,
                    unit * WA * A_OWN,
                    WA,
                    PA,
                    WA == PA,
                    BITS,
                    A_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
                scores = tl.dot(a_query, tl.trans(a_key), scores, input_precision=PRECISION)
            if WB > 0:
                b_key = _values(
                    b_at,
                    b_scales,
                    near,
                    ok,
                    b_s,
                    bb_s,
                    unit * b_u,
                    unit * WB * B_OWN,
                    WB,
                    PB,
                    WB == PB,
                    BITS,
                    B_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
                scores = tl.dot(b_query, tl.trans(b_key), scores, input_precision=PRECISION)
        scores = tl.where(seen[None, :], scores, -1.0e38)
        above = tl.maximum(top, tl.max(scores, 1) * scale)
        shrink = tl.exp2(top - above)
        weight = tl.exp2(scores * scale - above[:, None])
        total = total * shrink + tl.sum(weight, 1)
        top = above
        weight = weight.to(dtype)
        if BITS == 4:
            if JOINT:
                v0, v1 = k2, k3
            else:
                v0, v1 = _halves(
                    v_at,
                    v_scales,
                    near,
                    ok,
                    v_s,
                    vb_s,
                    unit * v_u + v_first // PER_ITEM,
                    unit * WV * V_OWN + v_first,
                    WV - v_first,
                    PV,
                    WV % PV == 0,
                    V_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
            even = tl.dot(weight, v0, even * shrink[:, None], input_precision=PRECISION)
            odd = tl.dot(weight, v1, odd * shrink[:, None], input_precision=PRECISION)
        else:
            if JOINT:
                value = b_key
            else:
                value = _values(
                    v_at,
                    v_scales,
                    near,
                    ok,
                    v_s,
                    vb_s,
                    unit * v_u + v_first // PER_ITEM,
                    unit * WV * V_OWN + v_first,
                    WV - v_first,
                    PV,
                    WV % PV == 0,
                    BITS,
                    V_BLOCK,
                    ALIGNED,
                    PTX,
                    dtype,
                )
            mixed = tl.dot(weight, value, mixed * shrink[:, None], input_precision=PRECISION)

    whole = tl.where(total > 0, total, 1.0)
    row = ((batch * U + unit) * M + rows) * splits + split
    tl.store(Lse + row, tl.where(total > 0, top + tl.log2(whole), -1.0e30), mask=present)
    out = Partial + row[:, None] * WV
    if BITS == 4:
        column = v_first + 2 * tl.arange(0, PV // 2)
        tl.store(out + column[None, :], even / whole[:, None], mask=present[:, None] & (column < WV)[None, :])
        tl.store(out + column[None, :] + 1, odd / whole[:, None], mask=present[:, None] & (column + 1 < WV)[None, :])
    else:
        column = v_first + tl.arange(0, PV)
        tl.store(out + column[None, :], mixed / whole[:, None], mask=present[:, None] & (column < WV)[None, :])


@triton.jit
def _merge(Partial, Lse, Out, Total, splits, WV: tl.constexpr, PV: tl.constexpr, PS: tl.constexpr):
    """Some columns of one query head's splits, weighed by their sums; its log-sum-exp in natural logarithms."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PS)
    lse = tl.load(Lse + row * splits + split, mask=split < splits, other=-1.0e30)
    top = tl.max(lse, 0)
    weight = tl.where(lse > -1.0e29, tl.exp2(lse - top), 0.0)
    total = tl.sum(weight, 0)
    whole = tl.where(total > 0, total, 1.0)
    column = tl.program_id(1) * PV + tl.arange(0, PV)
    here = (split < splits)[:, None] & (column < WV)[None, :]
    part = tl.load(Partial + (row * splits + split)[:, None] * WV + column[None, :], mask=here, other=0.0)
    out = tl.sum(part * weight[:, None], 0) / whole
    tl.store(Out + row * WV + column, out.to(Out.dtype.element_ty), mask=column < WV)
    if tl.program_id(1) == 0:
        tl.store(Total + row, tl.where(total > 0, (top + tl.log2(whole)) * 0.6931471805599453, float("-inf")))


@triton.jit
def _merge_expanded(
    Partial,
    Lse,
    Up,
    Out,
    Total,
    batch,
    splits,
    N: tl.constexpr,
    EACH: tl.constexpr,
    WV: tl.constexpr,
    PV: tl.constexpr,
    WD: tl.constexpr,
    PD: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same of some query heads that share an expansion ``Up`` ``[WD, WV]``, expanded: ``EACH`` of a sequence."""
    nth = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < batch * EACH
    head = ((row // EACH).to(tl.int64) * N + nth) * EACH + row % EACH
    top = tl.full([ROWS], -1.0e30, dtype=tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(Lse + head * splits + split, mask=present, other=-1.0e30))
    column = tl.arange(0, PV)
    here = present[:, None] & (column < WV)[None, :]
    total = tl.zeros([ROWS], dtype=tl.float32)
    mixed = tl.zeros([ROWS, PV], dtype=tl.float32)
    for split in tl.range(splits, num_stages=3):
        lse = tl.load(Lse + head * splits + split, mask=present, other=-1.0e30)
        weight = tl.where(lse > -1.0e29, tl.exp2(lse - top), 0.0)
        part = tl.load(Partial + (head * splits + split)[:, None] * WV + column[None, :], mask=here, other=0.0)
        total += weight
        mixed += part * weight[:, None]
    whole = tl.where(total > 0, total, 1.0)
    d = tl.program_id(2) * PD + tl.arange(0, PD)
    up = tl.load(
        Up + (nth * WD + d)[:, None] * WV + column[None, :], mask=(d < WD)[:, None] & (column < WV)[None, :], other=0.0
    )
    out = tl.dot((mixed / whole[:, None]).to(up.dtype), tl.trans(up), input_precision=PRECISION)
    tl.store(
        Out + head[:, None] * WD + d[None, :], out.to(Out.dtype.element_ty), mask=present[:, None] & (d < WD)[None, :]
    )
    if tl.program_id(2) == 0:
        lse = tl.where(total > 0, (top + tl.log2(whole)) * 0.6931471805599453, float("-inf"))
        tl.store(Total + head, lse, mask=present)


@dataclass(frozen=True, slots=True)
class _Part:
    """Keys or values in a cache: values, or codes and their scales as 32-bit words; each unit's own, or read by all."""

    plane: Tensor
    words: Tensor | None
    width: int
    own: bool


@dataclass(frozen=True, slots=True)
class _Launch:
    """A kernel and what it alone is given: ``rows`` programs for each split of each sequence.

    Programs beside each other are of a sequence's splits, or ``rows_first``.
    """

    kernel: Any
    tiling: Tiling
    rows: int
    rows_first: bool
    planes: Sequence[Tensor]
    strides: Sequence[int]
    constants: Mapping[str, Any]

    def splits(self, device: torch.device, batch: int, places: int) -> int:
        """As many as keep the device busy."""
        most = triton.cdiv(places, self.tiling.tile)
        if device.type != "cuda":
            return min(3, most)
        wanted = round(self.tiling.programs * _multiprocessors(device) / (batch * self.rows))
        return max(1, min(wanted, most, 256))


def attend_splits(
    query: Tensor,
    key: Tensor | None,
    key_blocks: Tensor | None,
    shared: Tensor | None,
    shared_blocks: Tensor | None,
    value: Tensor | None,
    value_blocks: Tensor | None,
    up: Tensor | None,
    starts: Tensor,
    ends: Tensor,
    widths: Sequence[int],
    per_unit: Sequence[bool],
    scale: float,
    bits: int,
    block: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`caramba_plugins_standard.decoding.attention.attend_cached`, whose arguments these are."""
    assert scale > 0, "what is not seen scores lowest"
    batch, units, heads, _ = query.shape
    planes = zip((key, shared, value), (key_blocks, shared_blocks, value_blocks), widths, per_unit, strict=True)
    parts = [
        None if plane is None else _Part(plane, None if blocks is None else blocks.view(torch.int32), width, own)
        for plane, blocks, width, own in planes
    ]
    launch = _launch(query, parts, bits, block)
    places = next(part.plane.shape[1] for part in parts if part is not None)
    splits = launch.splits(query.device, batch, places)
    partial = query.new_empty(batch, units, heads, splits, widths[2], dtype=torch.float32)
    lse = query.new_empty(batch, units, heads, splits, dtype=torch.float32)
    total = query.new_empty(batch, units, heads, dtype=torch.float32)
    launch.kernel[(launch.rows, splits, batch) if launch.rows_first else (splits, launch.rows, batch)](
        query,
        *launch.planes,
        starts,
        ends,
        partial,
        lse,
        *query.stride()[:3],
        *launch.strides,
        scale * _LOG2_E,
        window,
        sinks,
        splits,
        U=units,
        M=heads,
        WV=widths[2],
        TILE=launch.tiling.tile,
        BITS=bits,
        RING=window > 0,
        STAGES=launch.tiling.stages,
        **launch.constants,
        num_warps=launch.tiling.warps,
        num_stages=launch.tiling.stages,
    )
    if up is None:
        out = query.new_empty(batch, units, heads, widths[2])
        _merged(partial, lse, out, total)
        return out, total
    if splits > _FEW:  # one after the other takes too long
        whole, one = torch.empty_like(partial[..., 0, :]), torch.zeros_like(lse[..., 0])
        _merged(partial, lse, whole, total)
        return _expanded(whole.unsqueeze(3), one.unsqueeze(3), up, torch.empty_like(total), query), total
    return _expanded(partial, lse, up, total, query), total


def _merged(partial: Tensor, lse: Tensor, out: Tensor, total: Tensor) -> None:
    """Splits ``[B, U, M, n, v]`` into ``out`` ``[B, U, M, v]`` and ``total`` ``[B, U, M]``."""
    *rows, splits, width = partial.shape
    places = triton.next_power_of_2(splits)
    columns = min(triton.next_power_of_2(width), max(64, 4096 // places))
    _merge[(math.prod(rows), triton.cdiv(width, columns))](
        partial, lse, out, total, splits, WV=width, PV=columns, PS=places, num_warps=4
    )


def _expanded(partial: Tensor, lse: Tensor, up: Tensor, total: Tensor, query: Tensor) -> Tensor:
    """The same, times ``up`` ``[N, d, v]``: ``[B, U, M, d]``."""
    batch, units, heads, splits, width = partial.shape
    count, wide = up.shape[:2]
    out = query.new_empty(batch, units, heads, wide)
    each = units * heads // count
    columns = max(16, min(64, triton.next_power_of_2(wide)))
    _merge_expanded[(triton.cdiv(batch * each, 16), count, triton.cdiv(wide, columns))](
        partial,
        lse,
        up,
        out,
        total,
        batch,
        splits,
        N=count,
        EACH=each,
        WV=width,
        PV=max(16, triton.next_power_of_2(width)),
        WD=wide,
        PD=columns,
        ROWS=16,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=8,
    )
    return out


def _launch(query: Tensor, parts: Sequence[_Part | None], bits: int, block: int) -> _Launch:
    """The kernel for parts of keys, a second part and values (``None``: the second part again)."""
    first, second, value = parts
    keys = [part for part in (first, second) if part is not None]
    if len(keys) == 1 and value is not None and _factors(query.shape[2], [keys[0], value], bits, block):
        return _coded(query, keys[0], value, bits, block)
    return _dequantizing(query, first, second, value, bits, block)


def _factors(heads: int, parts: Sequence[_Part], bits: int, block: int) -> bool:
    """Whether scales had better stay out of the products: few heads and blocks, whole words of whole blocks."""
    if bits == 16 or block < 8 or block != triton.next_power_of_2(block):
        return False
    widths = [part.width for part in parts]
    whole = all(width == triton.next_power_of_2(width) and width * bits >= 256 for width in widths)
    few = triton.next_power_of_2(heads) * (max(widths) // block) <= 32
    return whole and few and min(widths) >= block and all(_in_words(part.plane) for part in parts)


def _in_words(codes: Tensor) -> bool:
    places = (codes.shape[-1], codes.storage_offset(), *codes.stride()[:-1])
    return codes.stride(-1) == 1 and all(place % 4 == 0 for place in places)


def _coded(query: Tensor, key: _Part, value: _Part, bits: int, block: int) -> _Launch:
    """Scales outside the products."""
    units, heads = query.shape[1:3]
    tiling = _coded_tiling(units, bits)
    planes: list[Tensor] = []
    for part in (key, value):
        assert part.words is not None, "quantized"
        planes += [part.plane.view(torch.int32), part.words]
    fast = query.is_cuda and query.dtype != torch.float32
    constants = {
        "WK": key.width,
        "BLOCK": block,
        "PM": max(triton.next_power_of_2(heads), 8 * block // min(key.width, value.width)),
        "GROUP": tiling.units,
        "WHOLE": key.plane.shape[1] % tiling.tile == 0,
        "PTX": fast,
        "PRECISION": "tf32" if fast else "ieee",
        "K_OWN": int(key.own),
        "V_OWN": int(value.own),
    }
    strides = [stride for plane in planes for stride in plane.stride()[:2]]
    return _Launch(split_coded, tiling, units // tiling.units, True, planes, strides, constants)


def _dequantizing(
    query: Tensor, first: _Part | None, second: _Part | None, value: _Part | None, bits: int, block: int
) -> _Launch:
    """Values, or codes dequantized as they are read."""
    units, heads = query.shape[1:3]
    last = value or second
    assert last is not None, "what is mixed"
    padded_heads = max(16, min(64, triton.next_power_of_2(heads)))
    head_tiles = triton.cdiv(heads, padded_heads)
    joint = value is None
    padded = [_padded(part, bits) for part in (first, second, last)]
    # programs for some columns of the values each; they meet the keys again
    if padded[2] > (2 * _WIDEST if joint else _WIDEST):
        padded[2], joint, value = _WIDEST, False, last
    value_tiles = triton.cdiv(last.width, padded[2])
    read = sum(size for size, part in zip(padded, (first, second, value), strict=True) if part is not None)
    tiling = _tiling(read + (512 if joint else 0), bits, query.element_size())
    blocks, aligned = _blocks(units, (first, second, last), padded, bits, block)
    planes: list[Tensor] = []
    strides: list[int] = []
    for part in (first, second, value):
        words = None if part is None else part.words
        planes += [query if part is None else part.plane, query if words is None else words]
        each = 0 if part is None or not part.own else part.width // (2 if bits == 4 else 1)
        strides += [*((0, 0) if part is None else part.plane.stride()[:2]), each]
        strides += (0, 0) if words is None else words.stride()[:2]
    constants: dict[str, Any] = {
        "WA": 0 if first is None else first.width,
        "WB": 0 if second is None else second.width,
        "PM": padded_heads,
        "ALIGNED": aligned,
        "PTX": query.is_cuda,
        "HEAD_TILES": head_tiles,
        "JOINT": joint,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
    for name, part, size, length in zip("ABV", (first, second, last), padded, blocks, strict=True):
        constants |= {f"P{name}": size, f"{name}_BLOCK": length, f"{name}_OWN": int(part is not None and part.own)}
    return _Launch(_split, tiling, units * head_tiles * value_tiles, False, planes, strides, constants)


def _padded(part: _Part | None, bits: int) -> int:
    """Columns that a program reads of a part."""
    return max(16 if bits == 16 else 32, triton.next_power_of_2(part.width) if part is not None else 0)


def _blocks(
    units: int, parts: Sequence[_Part | None], padded: Sequence[int], bits: int, block: int
) -> tuple[list[int], bool]:
    """The length of each part's blocks, and whether its columns are whole blocks to the kernel.

    A block that spans a whole part is as long as the part is padded, however long it is stored.
    """
    spans = [block if part is None else min(block, _padded(part, bits)) for part in parts]
    aligned = bits != 16 and block >= 8 and block == triton.next_power_of_2(block) and spans[2] <= padded[2]
    for part in parts:
        if part is not None and part.own and units > 1:
            aligned = aligned and part.width % block == 0
    return (spans if aligned else [block] * len(parts)), aligned


def _tiling(width: int, bits: int, bytes_each: int) -> Tiling:
    """Launches that were fastest on one NVIDIA H200, by the padded width of all that a program reads of a token."""
    if bits != 16:
        return Tiling(32, 4, 3, 3) if width > 192 else Tiling(32 if bits == 8 else 64, 1, 3, 8)
    width = width * bytes_each // 2
    if width <= 192:
        return Tiling(64, 4, 4, 2)
    if width <= 384:
        return Tiling(64, 4, 3, 2)
    if width <= 512:
        return Tiling(32, 4, 3, 2)
    return Tiling(64, 4, 2, 2) if width <= 1152 else Tiling(32, 4, 2, 2)


def _coded_tiling(units: int, bits: int) -> Tiling:
    """The same, of scales outside the products: a warp for each unit of a program, 8 warps a multiprocessor."""
    warps = math.gcd(units, 4) if bits == 8 else 1
    return Tiling(32, warps, 3, 8 // warps, units=warps)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
