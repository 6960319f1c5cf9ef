"""Numbers as people read them."""

from __future__ import annotations

import pytest
from caramba_terminal.numbers import format_bytes, format_count, format_indexes, format_measured


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (9_216, "9,216"),
        (9_999.6, "10,000"),
        (10_000, "10k"),
        (134_515_008, "135M"),
        (999_600, "1,000k"),
        (1_235_814_400, "1.24B"),
        (2.5e15, "2,500T"),
    ],
)
def test_counts(count: float, words: str) -> None:
    assert format_count(count) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023.6 * 1024, "1,024 KiB"), (2.3 * 2**30, "2.3 GiB")],
)
def test_bytes(count: float, words: str) -> None:
    assert format_bytes(count) == words


@pytest.mark.parametrize(
    ("names", "words"),
    [([], ""), (["3"], "3"), (["0", "1", "2", "7"], "0-2, 7"), (["body"], "body"), (["0", "body"], "0, body")],
)
def test_indexes(names: list[str], words: str) -> None:
    assert format_indexes(names) == words


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [(34.041, 0.7677, "34.04 ± 0.77"), (999.4, None, "999.40"), (46_714.23, 550.16, "46,714 ± 550")],
)
def test_measured(value: float, error: float | None, words: str) -> None:
    assert format_measured(value, error) == words
