"""The table that closes ``caramba run``."""

from __future__ import annotations

import pytest
from caramba_plugins_standard.plugin import group_sections


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (142.3, "142 s"), (600, "10 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min")],
)
def test_durations(seconds: float, words: str) -> None:
    (section,) = group_sections([{"run": "first", "seconds": seconds}])
    assert section.rows == (("first", "", "", "", "", "0", words),)


def test_a_teacher_stands_above_the_runs() -> None:
    summary = {
        "run": "convert",
        "perplexity": {"teacher": 47.361, "start": 47.361, "end": 58.283},
        "perplexity_standard_error": {"teacher": 2.49, "start": 2.49, "end": None},
        "perplexity_ratio": {"start": 1.0, "end": 1.2306},
        "cache_bytes_per_token": {"teacher": 46080.0, "student": 23040.0},
        "cache_bytes_once": {"teacher": 0, "student": 12288},
        "cache_context": 1024,
        "calibration_tokens": 8192,
        "parameters": 131_000_000,
        "seconds": 129.0,
    }
    (section,) = group_sections([summary])
    assert section.rows == (
        ("teacher", "47.36 ± 2.49", "1.000", "46,080", "", "", ""),
        ("convert", "58.28", "1.231", "23,040 + 12 KiB once", "131M", "8,192", "129 s"),
    )
    assert "cache B/token at 1,024" in section.columns
    (section,) = group_sections([summary, {**summary, "cache_context": 64}])
    assert "cache B/token" in section.columns
    assert [row[3] for row in section.rows] == [
        "46,080 at 1,024",
        "23,040 at 1,024 + 12 KiB once",
        "23,040 at 64 + 12 KiB once",
    ]
