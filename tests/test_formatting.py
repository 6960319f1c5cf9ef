"""Numbers as people read them."""

from __future__ import annotations

import pytest
from caramba_terminal.numbers import format_bytes, format_count, format_indexes


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
