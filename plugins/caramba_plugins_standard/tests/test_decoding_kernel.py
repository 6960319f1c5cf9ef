"""The kernel of decode steps against the same spelled out: on a GPU, and elsewhere by Triton's interpreter."""

from __future__ import annotations

import os
import sys

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


def compare(
    shape: tuple[int, int, int, int, tuple[int, int, int], tuple[bool, bool, bool], bool],
    bits: int,
    *,
    dtype: torch.dtype,
    window: int | None = None,
    expanded: bool = False,
    ends: Tensor | None = None,
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
        planes += [values, None] if bits == 16 else [*(part.contiguous() for part in quantize(values, bits, 32))]
    if ends is None:
        ends = torch.linspace(1, 2 * places if window else places, batch, device=DEVICE).long()
    starts = ends // 3 * (torch.arange(batch, device=DEVICE) % 2)
    up = torch.randn(units, 24, widths[2], device=DEVICE).to(dtype) / widths[2] ** 0.5 if expanded else None
    rest = (up, starts, ends, list(widths), list(own), 0.3, bits, 32, window or 0, 4 if window else 0)
    found, found_total = attend_splits(query, *planes, *rest)
    wanted, total = _spelled_out(query, *planes, *rest)
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
    shape: tuple[int, int, int, int, tuple[int, int, int], tuple[bool, bool, bool], bool],
    bits: int,
    window: int | None,
    expanded: bool,
) -> None:
    compare(shape, bits, dtype=dtype, window=window, expanded=expanded)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_many_splits_are_merged_before_they_are_expanded(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_plugins_standard.decoding import kernel

    monkeypatch.setattr(kernel, "_FEW", 1)
    compare(SHAPES[2], bits, dtype=torch.float32, expanded=True)


@pytest.mark.skipif(not ON_GPU, reason="too long for the interpreter")
@pytest.mark.parametrize("expanded", [False, True], ids=["mixed", "expanded"])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("shape", [SHAPES[6], SHAPES[2], SHAPES[3]], ids=str)
def test_lengths_from_nothing_to_seventy_thousand(
    shape: tuple[int, int, int, int, tuple[int, int, int], tuple[bool, bool, bool], bool], bits: int, expanded: bool
) -> None:
    ends = torch.tensor([0, 1, 1000, 32769, 70000], device=DEVICE)
    shape = (len(ends), 70000, *shape[2:])
    compare(shape, bits, dtype=torch.bfloat16, expanded=expanded, ends=ends)
