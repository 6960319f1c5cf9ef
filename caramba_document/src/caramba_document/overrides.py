"""``--set path=value``: values from the command line, laid on the tree as if the user had written them there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import attrs

from caramba_document.problem import Path, dotted, shown
from caramba_document.reading import Reading, check_depth
from caramba_document.source import Broken, SourceText, TextSpan, check_characters
from caramba_document.suggestions import unknown
from caramba_document.texts import read_text
from caramba_document.tree import Gap, List, Map, Node, Scalar, plain
from caramba_document.variables import unknown_variable

__all__ = ["Override", "apply", "override_name", "parse"]

_PART: Final = re.compile(r'(?:"([^"]+)"|([^".=\s]+))(\.?)')


@attrs.frozen
class Override:
    """One ``--set``: the path as written, the place of each part, and the value."""

    parts: tuple[tuple[str, TextSpan], ...]
    value: Node

    @property
    def of_groups(self) -> bool:
        """Whether it reaches into the groups, and so is applied once they are expanded."""
        return len(self.parts) > 1 and self.parts[0][0] == "groups"


def override_name(text: str) -> str:
    """What messages call an override."""
    return f"--set {text}"


def parse(texts: Sequence[str], reading: Reading) -> list[Override]:
    """The overrides of a command line; what cannot be read is noted as a problem."""
    overrides = []
    for text in texts:
        try:
            overrides.append(_parse(SourceText(name=override_name(text), text=text, placeless=True), reading))
        except Broken as broken:
            reading.report(broken.problem)
    return overrides


def _parse(source: SourceText, reading: Reading) -> Override:
    check_characters(source)
    parts: list[tuple[str, TextSpan]] = []
    index = 0
    while part := _PART.match(source.text, index):
        parts.append((part[1] or part[2], TextSpan(source, index, part.end() - len(part[3]))))
        index = part.end()
        if not part[3]:
            break
    here = TextSpan(source, index, index + 1)
    if not parts or source.text[index : index + 1] != "=":
        raise here.broken("this does not set anything", expected="path=value, such as groups.0.runs.0.train.lr=1e-3")
    if not source.text[index + 1 :].strip():
        raise here.broken("there is no value behind the =", hint="write null for none")
    # Spaces in place of the path keep offsets into the value equal to offsets into the whole.
    value = read_text(attrs.evolve(source, text=" " * (index + 1) + source.text[index + 1 :]), reading)
    check_depth(len(parts) + value.depth, here)
    return Override(tuple(parts), value)


def apply(root: Map, overrides: Sequence[Override], reading: Reading) -> Map:
    """The tree with the values of ``overrides`` in it, the last one winning."""
    for override in overrides:
        try:
            root = _set(root, override, ())
        except Broken as broken:
            reading.report(broken.problem)
    return root


def _set(node: Node, override: Override, path: Path) -> Any:
    """``node``, which stands at ``path``, with the value set in it."""
    if len(path) == len(override.parts):
        return override.value
    name, span = override.parts[len(path)]
    if isinstance(node, List):
        index = _index(node, name, span, path)
        return node.set(index, _set(node.items[index], override, (*path, index)))
    if isinstance(node, Scalar) and node.value is None:
        node = Map({}, span)
    if not isinstance(node, Map):
        what = "unreadable" if isinstance(node, Gap) else shown(plain(node))
        raise span.broken(f"{dotted(path)} is {what}: nothing can be set inside it")
    below = node.get(name)
    if below is None and path == ("vars",):
        raise Broken(unknown_variable(name, span, node.entries))
    return node.set(name, _set(below or Map({}, span), override, (*path, name)), span)


def _index(node: List, part: str, span: TextSpan, path: Path) -> int:
    """The item that a part means: by its index, or by its ``name:`` or ``id:``."""
    size = len(node.items)
    if part.isdecimal() and len(part) < 7:
        if int(part) < size:
            return int(part)
        raise span.broken(f"{dotted(path)} has {size} items", expected=f"an index below {size}")
    names: dict[str, int] = {}
    for index, item in enumerate(node.items):
        for name in (item.get("name"), item.get("id")):
            if isinstance(name, Scalar):
                names.setdefault(str(name.value), index)
    if part in names:
        return names[part]
    right = "an index, or one of {}" if names else "an index"
    message, expected = unknown(f"{dotted(path)} is a list without an item {part!r}", part, names, right)
    raise span.broken(message, expected=expected)
