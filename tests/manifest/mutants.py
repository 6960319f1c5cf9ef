"""Presets, their leaves and keys as an independent reader (ruamel.yaml's composer) sees them; ways to spoil them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from caramba_core.manifest.compose import find_source
from caramba_core.plugins.registry import registry


def preset_text(name: str) -> str:
    return find_source(name, Path(), registry()).text


PRESETS = [entry.name for entry in registry().entries("preset") if preset_text(entry.name)]
each_preset = pytest.mark.parametrize(
    "name", [PRESETS[0], *(pytest.param(name, marks=pytest.mark.presets) for name in PRESETS[1:])]
)


@attrs.frozen
class Written:
    """A scalar in a text: offsets, place from 1, and the path that leads to it."""

    start: int
    end: int
    line: int
    column: int
    path: tuple[str | int, ...]
    value: str

    def replaced(self, text: str, new: str) -> str:
        return text[: self.start] + new + text[self.end :]


def _written(node: ScalarNode, path: tuple[str | int, ...]) -> Written:
    start, end = node.start_mark, node.end_mark
    return Written(start.index, end.index, start.line + 1, start.column + 1, path, node.value)


def leaves(text: str) -> list[Written]:
    """Every scalar value."""
    return list(_walk(YAML(typ="safe", pure=True).compose(text), (), keys=False))


def keys(text: str) -> list[Written]:
    """Every key."""
    return list(_walk(YAML(typ="safe", pure=True).compose(text), (), keys=True))


def _walk(node: Node, path: tuple[str | int, ...], *, keys: bool) -> Iterator[Written]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if keys:
                yield _written(key, (*path, key.value))
            yield from _walk(value, (*path, key.value), keys=keys)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index), keys=keys)
    elif isinstance(node, ScalarNode) and not keys:
        yield _written(node, path)


def typos(word: str) -> list[str]:
    """Misspellings by one character: each letter left out, and a letter replaced, added, and swapped in the middle."""
    middle = len(word) // 2
    made = [word[:i] + word[i + 1 :] for i in range(len(word))]
    made += [word[:middle] + "q" + word[middle + 1 :], word[:middle] + "q" + word[middle:], f"{word}x"]
    made += [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]
    return [typo for typo in dict.fromkeys(made) if typo and typo != word]
