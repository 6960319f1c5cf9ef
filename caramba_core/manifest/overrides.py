"""``--set path=value``: values from the command line, laid on the tree as if the user had written them there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

from caramba_core.manifest.problem import ManifestProblem, Path, dotted, shown
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.source import Broken, SourceText, TextSpan, check_characters
from caramba_core.manifest.tree import Gap, List, Map, MapItem, Node, Scalar, list_of, map_of, plain
from caramba_core.manifest.variables import known_variables
from caramba_core.manifest.yaml_text import read_yaml
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["Override", "apply", "override_name", "parse"]

_PART: Final = re.compile(r'"([^"]+)"|([^".=\s]+)')


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
        source = SourceText(name=override_name(text), text=text, placeless=True)
        try:
            overrides.append(_parse(source, reading))
        except Broken as broken:
            reading.problems.append(broken.problem)
    return overrides


def _parse(source: SourceText, reading: Reading) -> Override:
    check_characters(source)
    parts: list[tuple[str, TextSpan]] = []
    index = 0
    while True:
        part = _PART.match(source.text, index)
        if part is None:
            break
        parts.append((part[1] or part[2], TextSpan(source, part.start(), part.end())))
        index = part.end()
        if source.text[index : index + 1] != ".":
            break
        index += 1
    if not parts or source.text[index : index + 1] != "=":
        raise Broken(
            TextSpan(source, index, index + 1).problem(
                "this does not set anything", expected="path=value, such as groups.0.runs.0.train.lr=1e-3"
            )
        )
    value_text = source.text[index + 1 :]
    if not value_text.strip():
        raise Broken(
            TextSpan(source, index, index + 1).problem("there is no value behind the =", hint="write null for none")
        )
    # Spaces in place of the path keep offsets into the value equal to offsets into the whole.
    shifted = SourceText(name=source.name, text=" " * (index + 1) + value_text, placeless=True)
    return Override(tuple(parts), read_yaml(shifted, reading))


def apply(root: Map, overrides: Sequence[Override], problems: list[ManifestProblem]) -> Map:
    """The tree with the values of ``overrides`` in it, the last one winning."""
    for override in overrides:
        try:
            changed = _set(root, override, 0, ())
        except Broken as broken:
            problems.append(broken.problem)
        else:
            assert isinstance(changed, Map)
            root = changed
    return root


def _set(node: Node, override: Override, depth: int, path: Path) -> Node:
    """``node`` with the value set at the parts from ``depth`` on; ``path`` is where ``node`` stands."""
    if depth == len(override.parts):
        return override.value
    name, span = override.parts[depth]
    if isinstance(node, List):
        index = _index(node, name, span, path)
        items = list(node.items)
        items[index] = _set(items[index], override, depth + 1, (*path, index))
        return list_of(items, node.span, head=node.head, notes=node.notes)
    if isinstance(node, Scalar) and node.value is None:
        node = map_of({}, span)
    if not isinstance(node, Map):
        what = "unreadable" if isinstance(node, Gap) else shown(plain(node))
        raise Broken(span.problem(f"{dotted(path)} is {what}: nothing can be set inside it"))
    below = node.entries.get(name)
    if below is None and path == ("vars",):
        near = nearest(name, node.entries)
        raise Broken(
            span.problem(
                f"unknown variable {name!r}{suggestion(near)}",
                expected=None if near else known_variables(node.entries),
            )
        )
    inner = map_of({}, span) if below is None else below.value
    changed = _set(inner, override, depth + 1, (*path, name))
    entry = MapItem(span if below is None else below.key, changed)
    return map_of({**node.entries, name: entry}, node.span, head=node.head, notes=node.notes)


def _index(node: List, part: str, span: TextSpan, path: Path) -> int:
    """The item that a part means: by its index, or by its ``name:`` or ``id:``."""
    if part.isdecimal() and len(part) < 7:
        if int(part) < len(node.items):
            return int(part)
        raise Broken(
            span.problem(f"{dotted(path)} has {len(node.items)} items", expected=f"an index below {len(node.items)}")
        )
    names: dict[str, int] = {}
    for index, item in enumerate(node.items):
        if isinstance(item, Map):
            for key in ("name", "id"):
                entry = item.entries.get(key)
                if entry is not None and isinstance(entry.value, Scalar):
                    names.setdefault(str(entry.value.value), index)
    if part in names:
        return names[part]
    near = nearest(part, names)
    raise Broken(
        span.problem(
            f"{dotted(path)} is a list without an item {part!r}{suggestion(near)}",
            expected=None if near else f"an index{f', or one of {listing(names)}' if names else ''}",
        )
    )
