"""Python blocks run, page by page, each page's blocks one after the other; comparisons in them hold."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.blocks import RECIPES, ROOT, Block, blocks, run

ALL = [block for block in blocks("python") if block.page not in RECIPES]
RUN = {block.page for block in ALL if block.not_run is None}


@pytest.mark.parametrize("page", sorted(RUN), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, object] = {}
    for block in ALL:
        if block.page == page and block.not_run is None:
            run(block, names)


@pytest.mark.parametrize("block", [block for block in ALL if block.not_run is not None], ids=str)
def test_what_does_not_run_is_python(block: Block) -> None:
    ast.parse(block.text)
