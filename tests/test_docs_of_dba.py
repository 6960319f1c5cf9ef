"""The tables of the page on DBA are what its records give."""

from __future__ import annotations

from bench.curves import DOCS, PAGE, TABLES, records, refreshed


def test_tables_are_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == refreshed(page), "run: python bench/curves.py"


def test_every_record_says_where_it_comes_from() -> None:
    for record in (*records("model"), *records("ablation"), *records("control")):
        assert {"date", "commit", "device", "command", "ratio"} <= record.keys()
        assert all(value is None or value > 0.8 for value in record["ratio"].values())


def test_the_page_shows_every_table_and_picture() -> None:
    page = PAGE.read_text()
    assert all(f"<!-- generated: {name} -->\n| " in page for name in TABLES)
    pictures = sorted(path.name for path in (DOCS / "pictures").iterdir())
    assert pictures
    assert all(f"(pictures/{name})" in page for name in pictures)
