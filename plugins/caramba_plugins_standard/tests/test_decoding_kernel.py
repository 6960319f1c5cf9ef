"""The kernel of decode steps against the same spelled out: on a GPU, and elsewhere by Triton's interpreter."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_standard.decoding.attention import _spelled_out
from caramba_plugins_standard.quantization import quantize
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if not ON_GPU:
    if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        pytest.skip("triton is loaded without its interpreter: run this file alone", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton", reason="triton is not installed")

Shape = tuple[int, int, int, int, tuple[int, int, int], tuple[bool, bool, bool], bool]

# batch, places, units, heads of a unit, widths (keys of their own, shared keys, values), which are per unit, joint
SHAPES = [
    (3, 70, 2, 3, (8, 0, 8), (True, False, True), False),
    (3, 70, 2, 3, (0, 8, 8), (False, True, True), False),
    (2, 130, 1, 5, (12, 10, 20), (False, False, False), False),
    (2, 65, 1, 4, (6, 16, 16), (False, False, False), True),
    (2, 40, 2, 2, (8, 6, 10), (True, False, True), False),
    (2, 33, 1, 40, (0, 24, 26), (False, False, False), False),
    (2, 80, 2, 4, (64, 0, 64), (True, False, True), False),
    (2, 40, 1, 4, (8, 290, 290), (False, False, False), True),
    (2, 96, 4, 3, (64, 0, 128), (True, False, True), False),
    (2, 70, 3, 8, (0, 64, 64), (False, False, True), False),
]
CODED = [SHAPES[6], SHAPES[8], SHAPES[9], (3, 101, 2, 4, (0, 64, 64), (False, False, False), False)]
"""Of whose caches in blocks of 32 scales stay out of the products."""

LATENTS = [  # joint but for one
    (2, 40, 1, 4, (48, 128, 128), (False, False, False), True),
    (2, 40, 3, 3, (80, 272, 272), (False, False, False), True),
    (2, 40, 1, 4, (80, 288, 288), (False, False, False), True),
    (2, 40, 1, 4, (136, 80, 272), (True, False, True), False),
]


def compare(
    shape: Shape,
    bits: int,
    *,
    dtype: torch.dtype,
    block: int = 32,
    window: int | None = None,
    expanded: bool = False,
    ends: Tensor | None = None,
    within: float | None = None,
) -> None:
    """The kernel and the spelled-out attention on random values of a shape of :data:`SHAPES`."""
    from caramba_plugins_standard.decoding.kernel import attend_splits

    batch, places, units, heads, widths, own, joint = shape
    places = window or places
    torch.manual_seed(0)
    query = torch.randn(batch, units, heads, widths[0] + widths[1], device=DEVICE).to(dtype)
    planes: list[Tensor | None] = []
    for width, per_unit in zip(widths, own, strict=True):
        if not width or (joint and len(planes) == 4):
            planes += [None, None]
            continue
        values = torch.randn(batch, places, width * (units if per_unit else 1), device=DEVICE).to(dtype)
        planes += [values, None] if bits == 16 else [*(part.contiguous() for part in quantize(values, bits, block))]
    if ends is None:
        ends = torch.linspace(1, 2 * places if window else places, batch, device=DEVICE).long()
    starts = ends // 3 * (torch.arange(batch, device=DEVICE) % 2)
    up = torch.randn(units, 24, widths[2], device=DEVICE).to(dtype) / widths[2] ** 0.5 if expanded else None
    rest = (up, starts, ends, list(widths), list(own), 0.3, bits, block, window or 0, 4 if window else 0)
    found, found_total = attend_splits(query, *planes, *rest)
    wanted, total = _spelled_out(query, *planes, *rest)
    if within is None:
        within = 3e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, wanted, atol=within, rtol=within)
    torch.testing.assert_close(found_total, total, atol=max(within, 3e-6), rtol=within)


@pytest.mark.parametrize("expanded", [False, True], ids=["mixed", "expanded"])
@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if ON_GPU else [])], ids=str)
def test_equals_what_is_spelled_out(
    dtype: torch.dtype,
    shape: Shape,
    bits: int,
    window: int | None,
    expanded: bool,
) -> None:
    compare(shape, bits, dtype=dtype, window=window, expanded=expanded)


@pytest.mark.parametrize("block", [16, 128, 512])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", LATENTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if ON_GPU else [])], ids=str)
def test_blocks_longer_than_a_part(dtype: torch.dtype, shape: Shape, bits: int, block: int) -> None:
    within = 1e-5 if dtype == torch.float32 else None  # scores are sums of 352 columns
    compare(shape, bits, dtype=dtype, block=block, within=within)


@pytest.mark.parametrize(("width", "bits", "padded"), [(48, 4, 64), (80, 8, 128), (272, 4, 512), (6, 8, 32)])
def test_a_block_is_no_longer_than_its_part_is_padded(width: int, bits: int, padded: int) -> None:
    launch, _ = launched((1, 40, 1, 4, (width, 0, 64), (False, False, False), False), bits, block=128)
    assert launch.constants["PA"] == padded
    assert launch.constants["A_BLOCK"] == min(128, padded)
    assert launch.constants["ALIGNED"]


@pytest.mark.parametrize(
    ("shape", "bits", "block", "chosen"),
    [
        *((shape, bits, 32, True) for shape in CODED for bits in (8, 4)),
        (SHAPES[6], 16, 1, False),
        (SHAPES[6], 8, 4, False),  # too short blocks,
        (SHAPES[6], 8, 128, False),  # too long ones,
        ((2, 40, 2, 16, (64, 0, 128), (True, False, True), False), 8, 32, False),  # many heads,
        ((2, 40, 1, 4, (64, 64, 64), (False, False, False), False), 8, 32, False),  # two parts,
        ((2, 40, 1, 4, (0, 64, 64), (False, False, False), True), 8, 32, False),  # or one of both
        (LATENTS[0], 4, 128, False),
    ],
    ids=str,
)
def test_when_scales_stay_out_of_the_products(shape: Shape, bits: int, block: int, chosen: bool) -> None:
    from caramba_plugins_standard.decoding.coded import split_coded

    launch, _ = launched(shape, bits, block=block)
    assert (launch.kernel is split_coded) == chosen


@pytest.mark.parametrize(("units", "bits", "each"), [(8, 8, 4), (6, 8, 2), (3, 8, 1), (1, 8, 1), (8, 4, 1)], ids=str)
def test_units_of_a_program(units: int, bits: int, each: int) -> None:
    launch, _ = launched((2, 64, units, 4, (64, 0, 64), (True, False, True), False), bits)
    assert (launch.constants["GROUP"], launch.tiling.warps, launch.rows) == (each, each, units // each)


def launched(shape: Shape, bits: int, block: int = 32) -> Any:
    """How the kernel would be launched on a shape, and its queries."""
    from caramba_plugins_standard.decoding import kernel

    batch, places, units, heads, widths, own, joint = shape
    parts = []
    for width, per_unit in zip(widths, own, strict=True):
        values = torch.zeros(batch, places, width * (units if per_unit else 1), device=DEVICE)
        if not width or (joint and len(parts) == 2):
            parts.append(None)
        elif bits == 16:
            parts.append(kernel._Part(values, None, width, per_unit))
        else:
            codes, scales = quantize(values, bits, block)
            parts.append(kernel._Part(codes.contiguous(), scales.contiguous().view(torch.int32), width, per_unit))
    query = torch.zeros(batch, units, heads, widths[0] + widths[1], device=DEVICE)
    return kernel._launch(query, parts, bits, block), query


def assembled(_: object, text: str, constraints: str, values: Any, *rest: object) -> Any:
    """What inline PTX of operations on 32-bit registers gives, for the interpreter, which runs none."""
    count = constraints.count("=")
    registers = {f"${count + nth}": value.data.view(np.uint32) for nth, value in enumerate(values)}
    for name, operands in re.findall(r"(prmt|lop3|shr)\.[bu]32 ([^;]+);", text):
        to, a, *others = operands.split(", ")
        b, *others = (registers[other] if other in registers else np.uint32(int(other, 0)) for other in others)
        a = registers[a]
        if name == "shr":
            found = a >> b
        elif name == "lop3":
            c, table = others
            found = np.zeros_like(a)
            for nth in range(8):
                term = (a if nth & 4 else ~a) & (b if nth & 2 else ~b) & (c if nth & 1 else ~c)
                found |= term if table >> nth & 1 else 0
        else:
            wide = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
            taken = [int(others[0]) >> 4 * nth & 7 for nth in range(4)]
            found = sum(
                (wide >> np.uint64(8 * place) & np.uint64(255)) << np.uint64(8 * n) for n, place in enumerate(taken)
            )
        registers[to] = np.broadcast_to(found, a.shape).astype(np.uint32)
    made = [type(values[0])(registers[f"${nth}"].view(np.int32), values[0].dtype) for nth in range(count)]
    return SimpleNamespace(get_result=lambda nth: made[nth])


@pytest.fixture
def in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, queries and weights as on a GPU, elsewhere too."""
    if ON_GPU:
        return
    from caramba_plugins_standard.decoding import kernel
    from triton.runtime.interpreter import InterpreterBuilder

    coded = kernel._coded
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", assembled)

    def fast(*arguments: Any) -> Any:
        launch = coded(*arguments)
        return dataclasses.replace(launch, constants={**launch.constants, "PTX": True})

    monkeypatch.setattr(kernel, "_coded", fast)


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", CODED, ids=str)
def test_codes_in_pairs_of_float16(shape: Shape, bits: int, window: int | None) -> None:
    compare(shape, bits, dtype=torch.float16 if ON_GPU else torch.float32, window=window, within=2e-3)


@pytest.mark.usefixtures("in_float16")
@pytest.mark.parametrize("bits", [8, 4])
def test_tokens_beside_one_that_the_attention_goes_to(bits: int) -> None:
    """Small values and weights a ten-thousandth of the greatest: their products are no float16 unless scaled."""
    from caramba_plugins_standard.decoding.kernel import attend_splits

    torch.manual_seed(0)
    query = torch.full((1, 1, 1, 64), 0.125, device=DEVICE).to(torch.float16 if ON_GPU else torch.float32)
    key = torch.zeros(1, 512, 64, device=DEVICE)
    key[:, 0] = 9.0
    value = 0.005 * torch.randn(1, 512, 64, device=DEVICE)
    value[:, 0] = 0.0  # the rest alone is to be seen
    planes = [*quantize(key, bits, 32), None, None, *quantize(value, bits, 32)]
    ends = torch.tensor([512], device=DEVICE)
    rest = (None, torch.zeros_like(ends), ends, [64, 0, 64], [True, False, True], 0.125, bits, 32, 0, 0)
    found, _ = attend_splits(query, *planes, *rest)
    wanted, _ = _spelled_out(query.float(), *planes, *rest)
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


@pytest.mark.skipif(not ON_GPU, reason="of the sums of tensor cores")
@pytest.mark.parametrize("bits", [8, 4])
def test_many_tiles_of_a_split(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_plugins_standard.decoding import kernel

    monkeypatch.setattr(kernel._Launch, "splits", lambda *_: 1)
    shape = (1, 16384, 4, 4, (64, 0, 64), (True, False, True), False)
    compare(shape, bits, dtype=torch.float16, ends=torch.tensor([16384], device=DEVICE), within=2e-3)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_many_splits_are_merged_before_they_are_expanded(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_plugins_standard.decoding import kernel

    monkeypatch.setattr(kernel, "_FEW", 1)
    compare(SHAPES[2], bits, dtype=torch.float32, expanded=True)


@pytest.mark.skipif(not ON_GPU, reason="too long for the interpreter")
@pytest.mark.parametrize("expanded", [False, True], ids=["mixed", "expanded"])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", [SHAPES[6], SHAPES[2], SHAPES[3]], ids=str)
def test_lengths_from_nothing_to_seventy_thousand(shape: Shape, bits: int, expanded: bool) -> None:
    ends = torch.tensor([0, 1, 1000, 32769, 70000], device=DEVICE)
    shape = (len(ends), 70000, *shape[2:])
    compare(shape, bits, dtype=torch.bfloat16, expanded=expanded, ends=ends)
