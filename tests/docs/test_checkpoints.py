"""The page of what is read of a checkpoint is that of the readers' tables."""

from __future__ import annotations

from scripts.checkpoints import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python scripts/checkpoints.py --write"
