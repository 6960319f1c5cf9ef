"""NaN and infinity are counted wherever they stand, in memory and in pieces of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.loading import FileSpan, Stored, finite
from caramba_plugins_standard.loading.finite import count_nonfinite, count_nonfinite_in_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from caramba_core.errors import InputError

NAN, INFINITE = float("nan"), float("inf")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PIECE = 32
"""Bytes in these tests: 16, 8 or 4 values."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_PIECE", PIECE)


def write(path: Path, tensors: Sequence[Tensor], *, before: int = 0) -> list[Stored]:
    """Tensors called 0, 1, ... one after the other in a file, ``before`` bytes from its start."""
    stored, content = [], bytes(before)
    for number, tensor in enumerate(tensors):
        span = FileSpan(path=path, offset=len(content), dtype=str(tensor.dtype).removeprefix("torch."))
        stored.append(Stored(key=str(number), name=None, shape=tuple(tensor.shape), dtype="", span=span))
        content += tensor.flatten().view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    return stored


def expected(tensor: Tensor) -> dict[str, int]:
    counts = {"NaN": int(tensor.isnan().sum()), "infinite": int(tensor.isinf().sum())}
    return {what: count for what, count in counts.items() if count}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    size = draw(st.integers(0, 70))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.linspace(-3, 3, size).to(dtype)
    odd = st.sampled_from([NAN, INFINITE, -INFINITE, torch.finfo(dtype).max, torch.finfo(dtype).min])
    for position, value in draw(st.dictionaries(st.integers(0, max(size - 1, 0)), odd, max_size=6)).items():
        if size:
            values[position] = value
    return values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(tensors(), max_size=4), before=st.integers(0, 9))
def test_counts_are_those_of_torch(tmp_path: Path, values: list[Tensor], before: int) -> None:
    found = count_nonfinite_in_files(write(tmp_path / "values", values, before=before))
    assert found == {str(number): expected(tensor) for number, tensor in enumerate(values)}
    assert [count_nonfinite(tensor) for tensor in values] == [expected(tensor) for tensor in values]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_the_ends_and_where_pieces_meet(tmp_path: Path, dtype: torch.dtype) -> None:
    piece = PIECE // dtype.itemsize
    size = 5 * piece + 3
    for position in (0, piece - 1, piece, 3 * piece - 1, 3 * piece, 5 * piece, size - 1):
        values = torch.ones(size, dtype=dtype)
        values[position] = NAN
        assert count_nonfinite_in_files(write(tmp_path / "values", [values])) == {"0": {"NaN": 1}}, position


def test_several_pieces_of_one_tensor_are_added_up(tmp_path: Path) -> None:
    first, second = torch.zeros(9, 8), torch.ones(30)
    first[0, 0] = first[4, 3] = first[8, 7] = NAN
    first[2, 5], first[8, 0] = INFINITE, -INFINITE
    found = count_nonfinite_in_files(write(tmp_path / "values", [first, second]))
    assert found == {"0": {"NaN": 3, "infinite": 2}, "1": {}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_that_overflows_is_no_fault(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.full((40,), torch.finfo(dtype).max, dtype=dtype)
    assert count_nonfinite(values) == {}
    assert count_nonfinite_in_files(write(tmp_path / "values", [values])) == {"0": {}}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_file_that_ends_early(tmp_path: Path, two_threads: None) -> None:
    stored = write(tmp_path / "values", [torch.ones(50), torch.ones(30)])
    (tmp_path / "values").write_bytes(bytes(4 * 80 - 1))
    with pytest.raises(InputError, match="values ends inside 1"):
        count_nonfinite_in_files(stored)
    (tmp_path / "values").unlink()
    with pytest.raises(InputError, match="values cannot be read: No such file"):
        count_nonfinite_in_files(stored)
    assert torch.get_num_threads() == 2
