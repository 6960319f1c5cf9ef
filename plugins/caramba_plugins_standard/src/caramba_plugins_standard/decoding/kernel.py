"""Attention of one new token per sequence to its cache, as stored: split over the context ("flash-decoding"), in Triton.

A program reads one split of one sequence's tokens once, for all query heads that share what it reads, and keeps a running
softmax (arXiv 2205.14135); a second kernel merges the splits by their log-sum-exp.  Quantized caches are expanded in
registers, tile by tile.

Axes: B batch, U units (groups of query heads that read the same values), M query heads per unit, S places in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attend_splits"]


@triton.jit
def _columns(pointer, blocks, rows, ok, stride, block_stride, offset, WIDTH, PADDED: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, dtype: tl.constexpr):
    """Columns ``offset ..`` of rows of an entry: values, or dequantized codes.  [rows, PADDED]"""
    column = tl.arange(0, PADDED)
    if EXACT:
        here = ok[:, None]
    else:
        here = ok[:, None] & (column < WIDTH)[None, :]
    at = offset + column
    if BITS == 16:
        return tl.load(pointer + rows[:, None] * stride + at[None, :], mask=here, other=0.0)
    code = tl.load(pointer + rows[:, None] * stride + at[None, :], mask=here, other=0)
    place = blocks + rows[:, None] * block_stride + (at // BLOCK)[None, :] * 2
    step = tl.load(place, mask=here, other=0.0)
    least = tl.load(place + 1, mask=here, other=0.0)
    return (code.to(tl.float32) * step.to(tl.float32) + least.to(tl.float32)).to(dtype)


@triton.jit
def _halves(pointer, blocks, rows, ok, stride, block_stride, offset, WIDTH, PADDED: tl.constexpr, BLOCK: tl.constexpr, dtype: tl.constexpr):
    """Even and odd columns from ``offset`` on, of which two share a byte: two tiles [rows, PADDED / 2]"""
    byte = tl.arange(0, PADDED // 2)
    here = ok[:, None] & (2 * byte < WIDTH)[None, :]
    pair = tl.load(pointer + rows[:, None] * stride + (offset // 2 + byte)[None, :], mask=here, other=0)
    place = blocks + rows[:, None] * block_stride + ((offset + 2 * byte) // BLOCK)[None, :] * 2
    step = tl.load(place, mask=here, other=0.0).to(tl.float32)
    least = tl.load(place + 1, mask=here, other=0.0).to(tl.float32)
    low = ((pair & 15).to(tl.float32) * step + least).to(dtype)
    high = ((pair >> 4).to(tl.float32) * step + least).to(dtype)
    return low, high


@triton.jit
def _split(
    Q, KA, KA_blocks, KB, KB_blocks, V, V_blocks, First, Last, Partial, Lse,
    q_b, q_u, q_m,
    ka_b, ka_s, ka_u, kab_b, kab_s,
    kb_b, kb_s, kb_u, kbb_b, kbb_s,
    v_b, v_s, v_u, vb_b, vb_s,
    scale, window, sinks,
    U: tl.constexpr, M: tl.constexpr, WA: tl.constexpr, WB: tl.constexpr, WV: tl.constexpr,
    PM: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, PV: tl.constexpr,
    SPLITS, TILE: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
    RING: tl.constexpr, JOINT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    unit = tl.program_id(1) % U
    rows = (tl.program_id(1) // U) * PM + tl.arange(0, PM)
    batch = tl.program_id(2).to(tl.int64)
    dtype = Q.dtype.element_ty
    first = tl.load(First + batch).to(tl.int32)
    last = tl.load(Last + batch).to(tl.int32)
    if RING:
        held = tl.minimum(last, window)
        start = first * 0
    else:
        held = last
        start = (first // TILE) * TILE
    span = tl.cdiv(tl.cdiv(held - start, SPLITS), TILE) * TILE
    low = start + split * span
    high = tl.minimum(low + span, held)

    present = rows < M
    q_at = Q + batch * q_b + unit * q_u + rows[:, None] * q_m
    if BITS == 4:
        if WA > 0:
            a2 = 2 * tl.arange(0, PA // 2)
            qa0 = tl.load(q_at + a2[None, :], mask=present[:, None] & (a2 < WA)[None, :], other=0.0)
            qa1 = tl.load(q_at + a2[None, :] + 1, mask=present[:, None] & (a2 + 1 < WA)[None, :], other=0.0)
        if WB > 0:
            b2 = 2 * tl.arange(0, PB // 2)
            qb0 = tl.load(q_at + WA + b2[None, :], mask=present[:, None] & (b2 < WB)[None, :], other=0.0)
            qb1 = tl.load(q_at + WA + b2[None, :] + 1, mask=present[:, None] & (b2 + 1 < WB)[None, :], other=0.0)
        acc0 = tl.zeros([PM, PV // 2], dtype=tl.float32)
        acc1 = tl.zeros([PM, PV // 2], dtype=tl.float32)
    else:
        if WA > 0:
            a = tl.arange(0, PA)
            qa = tl.load(q_at + a[None, :], mask=present[:, None] & (a < WA)[None, :], other=0.0)
        if WB > 0:
            b = tl.arange(0, PB)
            qb = tl.load(q_at + WA + b[None, :], mask=present[:, None] & (b < WB)[None, :], other=0.0)
        acc = tl.zeros([PM, PV], dtype=tl.float32)
    top = tl.full([PM], -1.0e30, dtype=tl.float32)
    total = tl.zeros([PM], dtype=tl.float32)

    for s0 in tl.range(low, high, TILE, num_stages=STAGES):
        near = tl.arange(0, TILE)
        s = s0 + near
        ok = s < high
        far = batch * 0 + s0
        if RING:
            # the place of a ring holds the last token that was written there
            text = tl.where(s < sinks, s, last - 1 - (last - 1 - s) % (window - sinks))
            text = tl.where(last <= window, s, text)
            seen = ok & (text >= first)
        else:
            seen = ok & (s >= first)
        scores = tl.zeros([PM, TILE], dtype=tl.float32)
        if BITS == 4:
            if WA > 0:
                k0, k1 = _halves(KA + batch * ka_b + far * ka_s, KA_blocks + batch * kab_b + far * kab_s, near, ok, ka_s, kab_s, unit * ka_u, WA, PA, BLOCK, dtype)
                scores = tl.dot(qa0, tl.trans(k0), scores, input_precision=PRECISION)
                scores = tl.dot(qa1, tl.trans(k1), scores, input_precision=PRECISION)
            if WB > 0:
                kb0, kb1 = _halves(KB + batch * kb_b + far * kb_s, KB_blocks + batch * kbb_b + far * kbb_s, near, ok, kb_s, kbb_s, unit * kb_u, WB, PB, BLOCK, dtype)
                scores = tl.dot(qb0, tl.trans(kb0), scores, input_precision=PRECISION)
                scores = tl.dot(qb1, tl.trans(kb1), scores, input_precision=PRECISION)
        else:
            if WA > 0:
                k = _columns(KA + batch * ka_b + far * ka_s, KA_blocks + batch * kab_b + far * kab_s, near, ok, ka_s, kab_s, unit * ka_u, WA, PA, BLOCK, BITS, WA == PA, dtype)
                scores = tl.dot(qa, tl.trans(k), scores, input_precision=PRECISION)
            if WB > 0:
                kb = _columns(KB + batch * kb_b + far * kb_s, KB_blocks + batch * kbb_b + far * kbb_s, near, ok, kb_s, kbb_s, unit * kb_u, WB, PB, BLOCK, BITS, WB == PB, dtype)
                scores = tl.dot(qb, tl.trans(kb), scores, input_precision=PRECISION)
        scores = tl.where(seen[None, :], scores * scale, -1.0e30)
        above = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - above)
        p = tl.where(seen[None, :], tl.exp2(scores - above[:, None]), 0.0)
        total = total * shrink + tl.sum(p, 1)
        top = above
        if BITS == 4:
            if JOINT:
                v0, v1 = kb0, kb1
            else:
                v0, v1 = _halves(V + batch * v_b + far * v_s, V_blocks + batch * vb_b + far * vb_s, near, ok, v_s, vb_s, unit * v_u, WV, PV, BLOCK, dtype)
            acc0 = tl.dot(p.to(dtype), v0, acc0 * shrink[:, None], input_precision=PRECISION)
            acc1 = tl.dot(p.to(dtype), v1, acc1 * shrink[:, None], input_precision=PRECISION)
        else:
            if JOINT:
                v = kb
            else:
                v = _columns(V + batch * v_b + far * v_s, V_blocks + batch * vb_b + far * vb_s, near, ok, v_s, vb_s, unit * v_u, WV, PV, BLOCK, BITS, WV == PV, dtype)
            acc = tl.dot(p.to(dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    one = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, top + tl.log2(one), -1.0e30)
    row = ((batch * U + unit) * M + rows) * SPLITS + split
    tl.store(Lse + row, lse, mask=present)
    out = Partial + row[:, None] * WV
    if BITS == 4:
        v2 = 2 * tl.arange(0, PV // 2)
        tl.store(out + v2[None, :], acc0 / one[:, None], mask=present[:, None] & (v2 < WV)[None, :])
        tl.store(out + v2[None, :] + 1, acc1 / one[:, None], mask=present[:, None] & (v2 + 1 < WV)[None, :])
    else:
        vv = tl.arange(0, PV)
        tl.store(out + vv[None, :], acc / one[:, None], mask=present[:, None] & (vv < WV)[None, :])


@triton.jit
def _merge(Partial, Lse, Out, OutLse, SPLITS, WV: tl.constexpr, PV: tl.constexpr, PS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PS)
    lse = tl.load(Lse + row * SPLITS + split, mask=split < SPLITS, other=-1.0e30)
    top = tl.max(lse, 0)
    weight = tl.where(lse > -1.0e29, tl.exp2(lse - top), 0.0)
    total = tl.sum(weight, 0)
    one = tl.where(total > 0, total, 1.0)
    v = tl.arange(0, PV)
    part = tl.load(Partial + (row * SPLITS + split)[:, None] * WV + v[None, :], mask=(split < SPLITS)[:, None] & (v < WV)[None, :], other=0.0)
    out = tl.sum(part * weight[:, None], 0) / one
    tl.store(Out + row * WV + v, out.to(Out.dtype.element_ty), mask=v < WV)
    tl.store(OutLse + row, tl.where(total > 0, (top + tl.log2(one)) * 0.6931471805599453, float("-inf")))


def attend_splits(query, key, key_blocks, shared, shared_blocks, value, value_blocks, first, last, *, widths, per_unit, scale, bits, block, window, sinks, joint, splits, tile, warps, stages):
    batch, units, heads, _ = query.shape
    wa, wb, wv = widths
    pm = max(16, min(64, triton.next_power_of_2(heads)))
    tiles = triton.cdiv(heads, pm)
    least = 32 if bits == 4 else 16
    pa, pb, pv = (max(least, triton.next_power_of_2(w)) for w in widths)
    if joint:
        pb = pv
    partial = query.new_empty(batch, units, heads, splits, wv, dtype=torch.float32)
    lse = query.new_empty(batch, units, heads, splits, dtype=torch.float32)
    out = query.new_empty(batch, units, heads, wv)
    out_lse = query.new_empty(batch, units, heads, dtype=torch.float32)
    def strides(x, w, per):
        if x is None:
            return 0, 0, 0
        return x.stride(0), x.stride(1), (w if per else 0)
    def bstrides(x):
        return (0, 0) if x is None else (x.stride(0), x.stride(1))
    _split[(splits, units * tiles, batch)](
        query, *(query if x is None else x for x in (key, key_blocks, shared, shared_blocks, value, value_blocks)),
        first, last, partial, lse,
        query.stride(0), query.stride(1), query.stride(2),
        *strides(key, wa, per_unit[0]), *bstrides(key_blocks),
        *strides(shared, wb, per_unit[1]), *bstrides(shared_blocks),
        *strides(value, wv, per_unit[2]), *bstrides(value_blocks),
        scale * 1.4426950408889634, window or 0, sinks,
        U=units, M=heads, WA=wa, WB=wb, WV=wv, PM=pm, PA=pa, PB=pb, PV=pv,
        SPLITS=splits, TILE=tile, BITS=bits, BLOCK=block, RING=window is not None, JOINT=joint,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", STAGES=stages,
        num_warps=warps, num_stages=stages,
    )
    _merge[(batch * units * heads,)](partial, lse, out, out_lse, WV=wv, PV=triton.next_power_of_2(wv), SPLITS=splits, PS=triton.next_power_of_2(splits), num_warps=4)
    return out, out_lse
