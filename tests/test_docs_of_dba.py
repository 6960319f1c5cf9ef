"""The tables of the page on DBA are what its records give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import curves
from bench.curves import DOCS, PAGE, TABLES, records, refreshed


def test_tables_are_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == refreshed(page), "run: python bench/curves.py"


def test_every_record_says_where_it_comes_from() -> None:
    for record in records("kinds"):
        assert {"date", "commit", "device", "command", "cache_bytes", "tokens_a_kind"} <= record.keys()
        others = [record[name].keys() for name in ("kl", "top1") if name in record]  # or perplexity alone
        assert others in ([], 2 * [record["ratio"].keys()])
        assert {"mean", "worst"} < record["ratio"].keys()
    for record in (*records("model"), *records("ablation"), *records("control")):
        assert {"date", "commit", "device", "command", "ratio"} <= record.keys()
        assert all(value is None or value > 0.8 for value in record["ratio"].values())


def test_the_page_shows_every_table_and_picture() -> None:
    page = PAGE.read_text()
    assert all(f"<!-- generated: {name} -->\n| " in page for name in TABLES)
    pictures = sorted(path.name for path in (DOCS / "pictures").iterdir())
    assert pictures
    assert all(f"(pictures/{name})" in page for name in pictures)


def test_seeds_of_one_name_are_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(name: str, context: int, size: float, prose: float, verse: float, **rest: int) -> str:
        mean, worst = (prose * verse) ** 0.5, max(prose, verse)
        ratio = {"prose": prose, "verse": verse, "austen": 1.5, "moby": 2.0, "mean": mean, "worst": worst}
        figures = {"ratio": ratio, "kl": {"mean": 0.25}, "top1": {"mean": 0.5}}
        return json.dumps({"kind": "kinds", "name": name, "context": context, "cache_bytes": size, **figures, **rest})

    lines = [
        record("int8", 4096, 12960, 1.0, 1.0),
        record("dba", 1024, 11520, 1.0, 4.0, seed=1),
        record("int8", 1024, 12960, 1.0, 1.0),
        record("dba", 1024, 11520, 4.0, 2.25, seed=2),
    ]
    (tmp_path / "kinds.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(curves, "KINDS", tmp_path / "kinds.jsonl")
    rows = [row.strip("| ").split(" | ") for row in curves.over_kinds().splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        *(["1,024", "int8", "12,960"], ["1,024", "dba", "11,520"], ["4,096", "int8", "12,960"]),
    ]
    assert rows[1][3:] == [
        "2.4495 (2.0000 to 3.0000, 2 seeds)",
        "4.0000 (verse, prose)",
        "1.5000 / 2.0000",
        "0.2500",
        "0.500",
    ]
