# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return, attr-defined"
"""Attention of one new token of each sequence to quantized keys and values, for few query heads and blocks.

Scales stay out of the products: a token's score is ``sum_j step_j (q_j . code_j) + least_j sum(q_j)`` over its
blocks ``j``, and what it adds to the output ``(weight step_j) code_j + weight least_j``.  One product makes
``q_j . code_j`` of all heads and blocks: the queries ``[d, heads * blocks]`` are zero outside their block.  Tokens are
rows of the first product and columns of the second, so that few heads fill tensor cores made for at least 8 columns.

Codes become float16 as ``1024 + code``, one bit operation for two of them; what 1024 adds is known and taken off.
Tensor cores truncate what they add up, and of 1024 times a weight that shows: they sum a tile, float32 units the tiles.
Weights times steps are float16 too.  The greatest weight is ``2 ** (bits - 2)``, the most with which no step overflows,
so that tokens beside one that most of the attention goes to do not become 0.

Columns and tokens are permuted so that a lane of a warp expands, from the words that it read, what the tensor cores
want of it: nothing moves between lanes.  In float32 (and on a CPU) the same without the 1024.

Axes: as in :mod:`caramba_plugins_standard.decoding.kernel`; R rows of words, W words of a row, b which of the two
halves of a 32-bit register.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["split_coded"]

# Words in, pairs of float16 out: of 8-bit and 4-bit codes of one row, and of two rows at one column.  Every second
# pair of 4-bit codes comes as 1024 + 16 code.
_ROW_8: tl.constexpr = tl.constexpr("""{
    prmt.b32 $0, $2, 0x64646464, 0x4140;
    prmt.b32 $1, $2, 0x64646464, 0x4342;
}""")
_ROW_4: tl.constexpr = tl.constexpr("""{
    .reg .b32 rest;
    shr.u32 rest, $4, 8;
    lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 $2, rest, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $3, rest, 0x00f000f0, 0x64006400, 0xea;
}""")
_ROWS_8: tl.constexpr = tl.constexpr("""{
    .reg .b32 low, high;
    prmt.b32 low, $4, $5, 0x5140;
    prmt.b32 high, $4, $5, 0x7362;
    prmt.b32 $0, low, 0x64646464, 0x4140;
    prmt.b32 $1, low, 0x64646464, 0x4342;
    prmt.b32 $2, high, 0x64646464, 0x4140;
    prmt.b32 $3, high, 0x64646464, 0x4342;
}""")
_ROWS_4: tl.constexpr = tl.constexpr("""{
    .reg .b32 low, high, low8, high8;
    prmt.b32 low, $8, $9, 0x5410;
    prmt.b32 high, $8, $9, 0x7632;
    shr.u32 low8, low, 8;
    shr.u32 high8, high, 8;
    lop3.b32 $0, low, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $1, low, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 $2, low8, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $3, low8, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 $4, high, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $5, high, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 $6, high8, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $7, high8, 0x00f000f0, 0x64006400, 0xea;
}""")


@triton.jit
def _two(pair):
    """[...] int32 to [..., 2] float16."""
    return tl.join(
        pair.to(tl.int16).to(tl.float16, bitcast=True), (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    )


@triton.jit
def _code(word, BITS: tl.constexpr, NTH: tl.constexpr):
    """The ``NTH`` code of each word, in float32."""
    return ((word >> (BITS * NTH)) & (2**BITS - 1)).to(tl.float32)


@triton.jit
def _rows(word, R: tl.constexpr, W: tl.constexpr, BITS: tl.constexpr, PTX: tl.constexpr):
    """Codes of words ``[R, W]`` as ``[R, W * 32 / BITS]``, in the order of :func:`_row_column`."""
    if BITS == 8:
        if PTX:
            a, b = tl.inline_asm_elementwise(_ROW_8, "=&r,=&r,r", [word], dtype=(tl.int32,) * 2, is_pure=True, pack=1)
            a, b = _two(a), _two(b)
        else:
            a = tl.join(_code(word, 8, 0), _code(word, 8, 1))
            b = tl.join(_code(word, 8, 2), _code(word, 8, 3))
        codes = tl.reshape(tl.permute(tl.join(a, b), (0, 1, 3, 2)), [R, 4, W // 4, 2, 2])
        codes = tl.permute(codes, (0, 2, 1, 3, 4))
    else:
        if PTX:
            a, b, c, d = tl.inline_asm_elementwise(
                _ROW_4, "=&r,=&r,=&r,=&r,r", [word], dtype=(tl.int32,) * 4, is_pure=True, pack=1
            )
            a, b, c, d = _two(a), _two(b), _two(c), _two(d)
        else:
            a = tl.join(_code(word, 4, 0), _code(word, 4, 4))
            b = tl.join(_code(word, 4, 1), _code(word, 4, 5))
            c = tl.join(_code(word, 4, 2), _code(word, 4, 6))
            d = tl.join(_code(word, 4, 3), _code(word, 4, 7))
        codes = tl.join(tl.join(a, b), tl.join(c, d))  # [R, W, b, p0, p1]
        codes = tl.permute(tl.reshape(codes, [R, 4, W // 4, 2, 2, 2]), (0, 2, 5, 1, 4, 3))
    return tl.reshape(codes, [R, W * 32 // BITS])


@triton.jit
def _row_column(k, W: tl.constexpr, BITS: tl.constexpr):
    """The column that is ``k``-th of :func:`_rows`, and whether its code comes times 16 (with PTX)."""
    b, pair, high = k % 2, k // 2 % 2, k // 4 % 4
    if BITS == 8:
        column = (high * (W // 4) + k // 16) * 4 + pair * 2 + b
    else:
        column = (high * (W // 4) + k // 32) * 8 + k // 16 % 2 * 2 + pair + 4 * b
    return column, (pair == 1) & (BITS == 4)


@triton.jit
def _two_rows(even, odd, R: tl.constexpr, W: tl.constexpr, BITS: tl.constexpr, PTX: tl.constexpr):
    """Codes of even and odd tokens ``[R, W]`` as ``[2 R, W * 32 / BITS]``: :func:`_token`, :func:`_two_rows_column`."""
    two = tl.join(even, odd)
    if BITS == 8:
        if PTX:
            a, b, c, d = tl.inline_asm_elementwise(
                _ROWS_8, "=&r,=&r,=&r,=&r,r,r", [even, odd], dtype=(tl.int32,) * 4, is_pure=True, pack=1
            )
            a, b, c, d = _two(a), _two(b), _two(c), _two(d)
        else:
            a, b, c, d = _code(two, 8, 0), _code(two, 8, 1), _code(two, 8, 2), _code(two, 8, 3)
        codes = tl.join(tl.join(a, b), tl.join(c, d))  # [R, W, b, c0, c1]
        codes = tl.reshape(codes, [R // 8, 2, 2, 2, 8, W // 8, 2, 2, 2])
        codes = tl.permute(codes, (0, 3, 2, 1, 6, 8, 7, 5, 4))
    else:
        if PTX:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                _ROWS_4,
                "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
                [even, odd],
                dtype=(tl.int32,) * 8,
                is_pure=True,
                pack=1,
            )
            a, b, c, d, e, f, g, h = _two(a), _two(b), _two(c), _two(d), _two(e), _two(f), _two(g), _two(h)
        else:
            a, b, c, d = _code(two, 4, 0), _code(two, 4, 1), _code(two, 4, 2), _code(two, 4, 3)
            e, f, g, h = _code(two, 4, 4), _code(two, 4, 5), _code(two, 4, 6), _code(two, 4, 7)
        codes = tl.join(tl.join(tl.join(a, b), tl.join(c, d)), tl.join(tl.join(e, f), tl.join(g, h)))
        codes = tl.reshape(codes, [R // 8, 2, 2, 2, 8, W // 8, 2, 2, 2, 2])  # ..., b, c0, c1, c2
        codes = tl.permute(codes, (0, 3, 2, 1, 6, 9, 8, 7, 5, 4))
    return tl.reshape(codes, [2 * R, W * 32 // BITS])


@triton.jit
def _two_rows_column(m, W: tl.constexpr, BITS: tl.constexpr):
    """The column that is ``m``-th of :func:`_two_rows`, and whether its code comes times 16 (with PTX)."""
    nth = m // W
    return (m % 8 * (W // 8) + m // 8 % (W // 8)) * (32 // BITS) + nth, (nth % 2 == 1) & (BITS == 4)


@triton.jit
def _token(n):
    """The token of a tile that is ``n``-th of :func:`_two_rows`."""
    return n // 16 * 16 + n // 2 % 2 * 8 + n // 4 % 2 * 4 + n // 8 % 2 * 2 + n % 2


@triton.jit
def _scales(word):
    """Step and least value, float16 in one 32-bit word each, in float32."""
    step = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return step.to(tl.float32), ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit(do_not_specialize=["window", "sinks", "splits"])
def split_coded(
    Q,
    K,
    K_blocks,
    V,
    V_blocks,
    First,
    Ends,
    Partial,
    Lse,
    q_b,
    q_u,
    q_m,
    k_b,
    k_s,
    kb_b,
    kb_s,
    v_b,
    v_s,
    vb_b,
    vb_s,
    scale,
    window,
    sinks,
    splits,
    U: tl.constexpr,
    M: tl.constexpr,
    WK: tl.constexpr,
    WV: tl.constexpr,
    BLOCK: tl.constexpr,
    PM: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    RING: tl.constexpr,
    WHOLE: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
    K_OWN: tl.constexpr,
    V_OWN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What ``kernel._split`` does, of ``GROUP`` units; the cache holds whole tiles if ``WHOLE``.

    Codes and scales are 32-bit words, and strides count them.
    """
    JK: tl.constexpr = WK // BLOCK
    JV: tl.constexpr = WV // BLOCK
    NK: tl.constexpr = PM * JK
    NV: tl.constexpr = PM * JV
    K_WORDS: tl.constexpr = WK * BITS // 32
    V_WORDS: tl.constexpr = WV * BITS // 32
    dtype: tl.constexpr = tl.float16 if PTX else tl.float32
    ADDED: tl.constexpr = 1024.0 if PTX else 0.0
    RAISED: tl.constexpr = BITS - 2
    unit = tl.program_id(0) * GROUP  # units first: they share sectors of scales
    split = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    first = tl.load(First + batch).to(tl.int32)
    ends = tl.load(Ends + batch).to(tl.int32)
    held = tl.minimum(ends, window) if RING else ends
    start = 0 * first if RING else (first // TILE) * TILE
    span = tl.cdiv(tl.cdiv(held - start, splits), TILE) * TILE
    low = start + split * span
    high = tl.minimum(low + span, held)

    units = unit + tl.arange(0, GROUP)
    n = tl.arange(0, NK)
    column, times16 = _row_column(tl.arange(0, WK), K_WORDS, BITS)
    own = (n // JK < M)[None, :] & ((column // BLOCK)[:, None] == (n % JK)[None, :])
    query = tl.load(
        Q + batch * q_b + units[:, None, None] * q_u + (n // JK * q_m)[None, None, :] + column[None, :, None],
        mask=own[None, :, :],
        other=0.0,
    ).to(dtype)
    query_sum = tl.reshape(tl.sum(query.to(tl.float32), 1), [GROUP, 1, PM, JK])
    if PTX:
        query = tl.where(times16[None, :, None], query * 0.0625, query)
    added = tl.sum(query.to(tl.float32), 1) * -ADDED

    half_ones = tl.full([GROUP, 16, TILE // 2], 1.0, dtype=dtype)
    ones = tl.reshape(tl.join(half_ones, half_ones), [GROUP, 16, TILE])
    mixed = tl.zeros([GROUP, WV, NV], dtype=tl.float32)
    step_sum = tl.zeros([GROUP, 16, NV], dtype=tl.float32)  # of weights times steps, as rounded; all rows the same
    least_sum = tl.zeros([GROUP, 8, NV], dtype=tl.float32)  # over its rows: of weights times least values
    total = tl.zeros([GROUP, 8, PM], dtype=tl.float32)  # over its rows: of weights
    top = tl.full([GROUP, PM], -1.0e29, dtype=tl.float32)  # above any score that is not seen

    near = _token(tl.arange(0, TILE))
    even = 2 * tl.arange(0, TILE // 2)
    group = tl.arange(0, GROUP)[:, None, None]
    at = low.to(tl.int64)
    k_u: tl.constexpr = K_WORDS * K_OWN  # 0 where all units read the same
    kb_u: tl.constexpr = JK * K_OWN
    v_u: tl.constexpr = V_WORDS * V_OWN
    vb_u: tl.constexpr = JV * V_OWN
    k_at, kb_at = K + batch * k_b + at * k_s + unit * k_u, K_blocks + batch * kb_b + at * kb_s + unit * kb_u
    v_at, vb_at = V + batch * v_b + at * v_s + unit * v_u, V_blocks + batch * vb_b + at * vb_s + unit * vb_u
    k_near = near[None, :, None] * k_s + group * k_u + tl.arange(0, K_WORDS)[None, None, :]
    kb_near = near[None, :, None] * kb_s + group * kb_u + tl.arange(0, JK)[None, None, :]
    v_near = even[None, :, None] * v_s + group * v_u + tl.arange(0, V_WORDS)[None, None, :]
    vb_near = near[None, :, None] * vb_s + group * vb_u + tl.arange(0, JV)[None, None, :]
    for s0 in tl.range(0, high - low, TILE, num_stages=STAGES):
        left = high - low - s0
        ok = near < left
        if RING:  # a place behind the sinks holds the last token that was written there
            s = low + s0 + near
            text = tl.where((s < sinks) | (ends <= window), s, ends - 1 - (ends - 1 - s) % (window - sinks))
            seen = ok & (text >= first)
        else:
            seen = (low - first + s0 + near).to(tl.uint32) < (high - first).to(tl.uint32)
        k_words = tl.load(kb_at + kb_near, mask=ok[None, :, None], other=0)
        v_words = tl.load(vb_at + vb_near, mask=ok[None, :, None], other=0)
        if WHOLE:  # codes behind the last token meet scales of 0
            k_codes = tl.load(k_at + k_near)
            v_even = tl.load(v_at + v_near)
            v_odd = tl.load(v_at + v_s + v_near)
        else:
            k_codes = tl.load(k_at + k_near, mask=ok[None, :, None], other=0)
            v_even = tl.load(v_at + v_near, mask=(even < left)[None, :, None], other=0)
            v_odd = tl.load(v_at + v_s + v_near, mask=(even + 1 < left)[None, :, None], other=0)
        k_at += TILE * k_s
        kb_at += TILE * kb_s
        v_at += TILE * v_s
        vb_at += TILE * vb_s

        key = _rows(tl.reshape(k_codes, [GROUP * TILE, K_WORDS]), GROUP * TILE, K_WORDS, BITS, PTX)
        dots = tl.zeros([GROUP, TILE, NK], dtype=tl.float32) + added[:, None, :]
        dots = tl.dot(tl.reshape(key, [GROUP, TILE, WK]), query, dots, input_precision=PRECISION)
        step, least = _scales(k_words)
        scores = tl.reshape(dots, [GROUP, TILE, PM, JK]) * step[:, :, None, :] + least[:, :, None, :] * query_sum
        scores = tl.where(seen[None, :, None], tl.sum(scores, 3), -1.0e38)
        above = tl.maximum(top, tl.max(scores, 1) * scale - RAISED)
        shrink = tl.exp2(top - above)
        shrinks = tl.reshape(tl.broadcast_to(shrink[:, :, None], [GROUP, PM, JV]), [GROUP, 1, NV])
        weight = tl.exp2(scores * scale - above[:, None, :])
        top = above
        total = total * shrink[:, None, :] + tl.sum(tl.reshape(weight, [GROUP, TILE // 8, 8, PM]), 1)
        step, least = _scales(v_words)
        weighed = tl.reshape(weight[:, :, :, None] * least[:, :, None, :], [GROUP, TILE // 8, 8, NV])
        least_sum = least_sum * shrinks + tl.sum(weighed, 1)
        weighed = tl.reshape((weight[:, :, :, None] * step[:, :, None, :]).to(dtype), [GROUP, TILE, NV])
        v_even = tl.reshape(v_even, [GROUP * TILE // 2, V_WORDS])
        v_odd = tl.reshape(v_odd, [GROUP * TILE // 2, V_WORDS])
        value = tl.reshape(_two_rows(v_even, v_odd, GROUP * TILE // 2, V_WORDS, BITS, PTX), [GROUP, TILE, WV])
        mixed = tl.fma(mixed, shrinks, tl.dot(tl.permute(value, (0, 2, 1)), weighed, input_precision=PRECISION))
        if PTX:
            step_sum = tl.fma(step_sum, shrinks, tl.dot(ones, weighed))

    totals = tl.sum(total, 1)
    whole = tl.where(totals > 0, totals, 1.0)
    heads = tl.arange(0, PM)
    row = ((batch * U + units[:, None]) * M + heads[None, :]) * splits + split
    tl.store(Lse + row, tl.where(totals > 0, top + tl.log2(whole), -1.0e30), mask=(heads < M)[None, :])
    column, times16 = _two_rows_column(tl.arange(0, WV), V_WORDS, BITS)
    if PTX:
        mixed = tl.where(times16[None, :, None], mixed * 0.0625, mixed)
        added = tl.where(times16, ADDED / 16, ADDED)
        mixed -= tl.max(step_sum, 1)[:, None, :] * added[None, :, None]
    mixed += tl.sum(least_sum, 1)[:, None, :]
    mixed = tl.where(((column // BLOCK)[:, None] == (tl.arange(0, NV) % JV)[None, :])[None, :, :], mixed, 0.0)
    out = tl.sum(tl.reshape(mixed, [GROUP, WV, PM, JV]), 3) / whole[:, None, :]
    tl.store(Partial + row[:, None, :] * WV + column[None, :, None], out, mask=(heads < M)[None, None, :])
