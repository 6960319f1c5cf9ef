"""The core and what it reads documents with name no component: what others supply stands nowhere in their sources.

Looked for are the short names of components, their classes, and the distributions themselves.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import caramba_core
import caramba_document
import caramba_terminal
from caramba_core.plugins.metadata import CORE
from caramba_core.plugins.registry import registry

PACKAGES = [Path(str(package.__file__)).parent for package in (caramba_core, caramba_document, caramba_terminal)]
FILES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))
COMPONENTS = [
    entry
    for plugin in registry().plugins.values()
    if plugin.name != CORE
    for entry in plugin.components
    if entry.kind != "completer"  # which are called as the core's own parameters are
]
NAMES = {entry.name for entry in COMPONENTS}
CLASSES = {name for entry in COMPONENTS if re.search("[A-Z].*[A-Z]", name := entry.value.rpartition(":")[2])}
OTHERS = [name for name in registry().plugins if name != CORE]
DISTRIBUTION = re.compile(
    rf"(?<![\w-])(?:{'|'.join((*OTHERS, *(name.replace('-', '_') for name in OTHERS)))})(?![\w-])"
)

READ = (tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", None))

MEANS_MORE: Final = {
    "data": "groups[].data of a manifest",
    "eval": "groups[].eval and runs[].eval of a manifest",
    "explain": "a function of caramba_document.syntax",
    "graph": "the module caramba_core.graph",
    "int8": "a type of torch's",
    "key": "what a problem points at",
    "linear": "a function of caramba_core.nn.module, named as torch names it",
    "memory": "a part of a plan",
    "sliding_window": "a key of Hugging Face configurations, for which the nearest key is suggested",
    "teacher": "groups[].teacher of a manifest",
    "text": "a format of output",
    "tokens": "the unit of many fields",
    "train": "data.train of a manifest",
}
"""Names that a whole string of the core may be, with what they mean there."""

WORDS: Final = frozenset(
    """
    allocate compare constant convert cosine data distance eval explain export full generate graph init key linear
    memory multiply nested parallel perplexity position pretrained query report residual schema sequences softmax
    stacked standard teacher text texts token tokens train
    """.split()  # noqa: SIM905 - these are words
)
"""Names that are words of English or of the field, which texts, comments and variables of the core may use."""


def found_in(source: str) -> Iterator[tuple[int, str]]:
    """Lines of a source and the names of components in them."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_string and node not in docstrings and node.value in NAMES - MEANS_MORE.keys():
            yield node.lineno, repr(node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in READ:
            for offset, line in enumerate(token.string.splitlines()):
                words = {word.strip(".") for word in re.findall(r"[\w.]+", line)}
                for name in words & ((NAMES | CLASSES) - WORDS - MEANS_MORE.keys()):
                    yield token.start[0] + offset, name
                for distribution in DISTRIBUTION.findall(line):
                    yield token.start[0] + offset, distribution


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_core_names_no_component(file: Path) -> None:
    found = sorted(set(found_in(file.read_text(encoding="utf-8"))))
    assert not found, "\n".join(f"{file}:{line}: {name} is what another distribution supplies" for line, name in found)


def test_every_exception_is_a_name() -> None:
    """A word that no component is called any more needs no exception."""
    assert MEANS_MORE.keys() | WORDS <= NAMES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('find(("schedule",), "cosine")', {(1, "'cosine'")}),
        ('"""Starts gqa.\n\nThen mla."""', {(1, "gqa"), (3, "mla")}),
        ("x = 1  # as RMSNorm does", {(1, "RMSNorm")}),
        ('f"{x}: needs upcycle.global"', {(1, "upcycle.global")}),
        ('"pip install caramba-plugins-dba"', {(1, "caramba-plugins-dba"), (1, "dba")}),
        ("def gqa(swiglu): ...", {(1, "gqa"), (1, "swiglu")}),
        ('linear = text("a linear schedule of tokens")  # convert a residual', set()),
    ],
)
def test_what_is_found(source: str, found: set[tuple[int, str]]) -> None:
    assert set(found_in(source)) == found
