"""YAML blocks compile: whole manifests as they are, a list of layers in a small model.

A block whose first line is ``# NAME.yml`` is that file for the blocks after it on its page.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from caramba_document.writing import dump
from ruamel.yaml import YAML

from caramba_core.manifest.load import load_manifest
from caramba_core.plan import plan_manifest
from tests.docs.blocks import RECIPES, ROOT, Block, blocks

ALL = [block for block in blocks("yaml", "yml", "json") if block.page not in RECIPES]
PAGES = {block.page for block in ALL}

MODEL = {
    "version": 1,
    "name": "around_a_fragment",
    "model": {
        "type": "transformer",
        "embedder": {"type": "token", "vocab_size": 64, "d_model": 64},
        "topology": {"type": "stacked"},
    },
}


def name_of(block: Block) -> str:
    named = re.match(r"# ([\w.-]+\.(?:yml|yaml|json))\n", block.text)
    return named[1] if named else f"line_{block.line}.yml"


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_compile(page: Path, workspace: Path) -> None:
    for block in ALL:
        if block.page == page and block.not_run is None:
            file = workspace / name_of(block)
            file.write_text(block.text)
            data = YAML(typ="safe", pure=True).load(block.text)
            if isinstance(data, list):
                model = {**MODEL["model"], "topology": {"type": "stacked", "layers": data}}  # type: ignore[dict-item]
                file.write_text(dump({**MODEL, "model": model}))
            if block.mark != "a file of the next manifest":
                assert plan_manifest(load_manifest(file)), str(block)


def test_groups_of_a_matrix(workspace: Path) -> None:
    """The names that the page gives."""
    page = (ROOT / "docs" / "manifest.md").read_text()
    for block in ALL:
        if block.page.name == "manifest.md":
            (workspace / name_of(block)).write_text(block.text)
    names = [group.name for group in load_manifest(workspace / "matrix.yml").manifest.groups]
    assert len(names) == 4
    assert f"`{names[0]}` to `{names[-1]}`" in page


def test_every_key_of_composition_has_an_example() -> None:
    page = (ROOT / "docs" / "manifest.md").read_text()
    for key in ("vars", "extends", "include", "matrix", "from", "replace", "repeat", "each", "variants", "order"):
        assert any(re.search(rf"\b{key}:", block.text) for block in ALL if block.page.name == "manifest.md"), key
        assert f"`{key}" in page
