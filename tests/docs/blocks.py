"""The code blocks of all pages, and the marks that say which of them are not run.

A comment in the line before a block marks it:

    <!-- not run: the reason -->              what cannot run in a test; its syntax is checked all the same
    <!-- a file of the next manifest -->      what a manifest includes
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import attrs

__all__ = ["PAGES", "RECIPES", "ROOT", "Block", "blocks", "commands", "run"]

ROOT = Path(__file__).resolve().parents[2]

PAGES = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "demo" / "README.md",
    *sorted(ROOT.glob("caramba*/README.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
)

RECIPES = (ROOT / "docs" / "quickstart.md", *sorted((ROOT / "docs" / "recipes").glob("*.md")))
"""Pages that are run from top to bottom, every block (test_recipes.py); of other pages, blocks of one language."""

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>\n]+) -->\n\n?)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


_FILE = re.compile(r"# caramba-plugin-falling/\S+\n")


@attrs.frozen
class Block:
    """One code block, with the first line of its text."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def not_run(self) -> str | None:
        """Why it does not run in a test."""
        given, _, reason = (self.mark or "").partition(": ")
        if given == "not run":
            return reason
        return "tests/plugins/test_docs.py builds the tutorial from it" if _FILE.match(self.text) else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    """The blocks of these languages on all pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            if found["language"] in languages:
                line = text.count("\n", 0, found.start("text")) + 1
                yield Block(page, line, found["language"], dedent(found["text"]), found["mark"])


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block; of a console block those behind ``$``."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        for command in re.split(r"&&|;|&$", line.partition(" #")[0]):
            words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command), comments=True)
            if words:
                yield words


def run(block: Block, names: dict[str, object]) -> None:
    """Run a Python block in the namespace of its page; a comparison that stands alone must hold."""
    for statement in ast.parse(block.text).body:
        where = f"{block} + {statement.lineno - 1}"
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Compare):
            assert eval(compile(ast.Expression(statement.value), where, "eval"), names), where
        else:
            exec(compile(ast.Module([statement], []), where, "exec"), names)
