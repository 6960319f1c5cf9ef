"""The notebook runs from an empty folder, and what it shows is what it gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "first_steps.ipynb"


def shown(cell: Any) -> list[str]:
    """What a cell prints and returns, as text, with numbers that depend on the processor rounded."""
    texts = [output.get("text") or output["data"]["text/plain"] for output in cell.outputs]
    return [re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2g}", text) for text in texts]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    ran = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(ran, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert any(cell.get("outputs") for cell in stored.cells)
    for before, after in zip(stored.cells, ran.cells, strict=True):
        if before.cell_type == "code" and "varies" not in before.metadata.get("tags", ()):
            assert shown(after) == shown(before), "run: python scripts/pages.py --notebook"
