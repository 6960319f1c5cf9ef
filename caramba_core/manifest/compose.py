"""From texts to one tree: reading, ``extends:`` and ``include:``.

``extends:`` at the root names a manifest or preset (or a list of them) that this one is laid on; ``include:`` does the
same in any mapping.  Mappings merge key by key, everything else is replaced, and so is a component of another ``type``.
"""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Final

import attrs

from caramba_core.errors import PluginError
from caramba_core.manifest.presets import find_source, is_file_name
from caramba_core.manifest.problem import ManifestProblem, shown
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.source import Broken, SourceText, TextSpan
from caramba_core.manifest.tree import Gap, List, Map, MapItem, Node, Scalar, list_of, map_of, merge, plain
from caramba_core.manifest.yaml_text import read_yaml
from caramba_core.plugins.registry import registry

__all__ = ["Composer", "check_requires", "read"]

_MOST_TEXTS: Final = 32
"""Manifests that one may be made of."""


def read(source: SourceText, reading: Reading) -> Node:
    """The tree of one text, by its file's suffix."""
    if source.file is not None and source.file.suffix.lower() == ".json":
        from caramba_core.manifest.json_text import read_json

        return read_json(source, reading)
    return read_yaml(source, reading)


def check_requires(node: Node) -> list[ManifestProblem]:
    """A problem for each entry of ``requires:`` that is not met; its form is the structure's business."""
    problems = []
    for item in node.items if isinstance(node, List) else ():
        if isinstance(item, Scalar) and isinstance(item.value, str):
            try:
                registry().require(item.value)
            except PluginError as error:
                problems.append(
                    item.span.problem(error.message, path=("requires",), expected=error.expected, hint=error.hint)
                )
    return problems


@attrs.define
class Composer:
    """Reads a manifest and everything that it is made of."""

    reading: Reading
    sources: list[SourceText] = attrs.field(factory=list)
    inherited: dict[str, Node] = attrs.field(factory=dict)
    """Groups by name of the manifests that are extended: a group may extend them."""
    complete: bool = True
    """Whether everything that is named was found: without a part, what is missing says nothing."""

    def compose(self, source: SourceText) -> Map:
        """The tree of a manifest; raises :class:`Broken` where there is none, or where ``requires:`` is not met."""
        return self._root(source, ())

    def _root(self, source: SourceText, chain: tuple[SourceText, ...]) -> Map:
        self.sources.append(source)
        node = read(source, self.reading)
        if not isinstance(node, Map):
            raise Broken(_not_a_mapping(node, source))
        requires = node.entries.get("requires")
        unmet = check_requires(requires.value) if requires is not None else []
        if unmet:
            self.reading.problems.extend(unmet[1:])
            raise Broken(unmet[0])
        included = self._includes(node, (*chain, source))
        if isinstance(included, Gap):  # a file was not found, which is reported
            return map_of({}, node.span)
        if not isinstance(included, Map):
            raise Broken(_not_a_mapping(included, source))
        return self._extends(included, (*chain, source))

    # ------------------------------------------------------------------------------------------------ extends

    def _extends(self, root: Map, chain: tuple[SourceText, ...]) -> Map:
        entry = root.entries.get("extends")
        if entry is None:
            return root
        own = _without(root, "extends")
        base: Map | None = None
        for name, span in self._names(entry.value, "extends"):
            text = self._open(name, span, chain, "extended")
            if text is None:
                continue
            other = self._root(text, chain)
            base = other if base is None else _lay(base, other)
        if base is None:
            return own
        groups = base.entries.get("groups")
        if groups is not None and isinstance(groups.value, List):
            for group in groups.value.items:
                label = group.entries.get("name") if isinstance(group, Map) else None
                if label is not None and isinstance(label.value, Scalar) and isinstance(label.value.value, str):
                    self.inherited[label.value.value] = group
        return _lay(base, own)

    # ------------------------------------------------------------------------------------------------ include

    def _includes(self, node: Node, chain: tuple[SourceText, ...]) -> Node:
        """The tree with every ``include:`` in it filled in; the same node where there is none."""
        if isinstance(node, List):
            items = [self._includes(item, chain) for item in node.items]
            if all(new is old for new, old in zip(items, node.items, strict=True)):
                return node
            return list_of(items, node.span, head=node.head, notes=node.notes)
        if not isinstance(node, Map):
            return node
        entries = {key: MapItem(entry.key, self._includes(entry.value, chain)) for key, entry in node.entries.items()}
        if any(entries[key].value is not entry.value for key, entry in node.entries.items()):
            node = map_of(entries, node.span, head=node.head, notes=node.notes)
        entry = node.entries.get("include")
        if entry is None:
            return node
        own = _without(node, "include")
        base: Node | None = None
        for name, span in self._names(entry.value, "include"):
            text = self._open(name, span, chain, "included")
            if text is None:
                return Gap(span)
            self.sources.append(text)
            other = self._includes(read(text, self.reading), (*chain, text))
            base = other if base is None else merge(base, other)
        if base is None:
            return own
        if own.entries and not isinstance(base, Map):
            self.reading.problems.append(
                entry.key.problem(f"only a mapping can be extended, {base.span.source.name} holds {shown(plain(base))}")
            )
        return merge(base, own) if own.entries else base

    # ------------------------------------------------------------------------------------------------ both

    def _names(self, node: Node, key: str) -> list[tuple[str, TextSpan]]:
        """The manifests that an ``extends:`` or ``include:`` names; each is laid on the ones before it."""
        names: list[tuple[str, TextSpan]] = []
        for item in node.items if isinstance(node, List) else (node,):
            if isinstance(item, Scalar) and isinstance(item.value, str):
                names.append((item.value, item.span))
                continue
            self.complete = False
            if not isinstance(item, Gap):
                found = shown(plain(item))
                self.reading.problems.append(
                    item.span.problem(
                        f"expected a file name or a preset's name, found {found}",
                        path=(key,),
                        found=found,
                        expected="a name",
                    )
                )
        return names

    def _open(self, name: str, span: TextSpan, chain: tuple[SourceText, ...], verb: str) -> SourceText | None:
        asking = span.source
        folder = asking.file.parent if asking.file is not None else FilePath.cwd()
        try:
            text = find_source(name, folder, span)
        except Broken as broken:
            self.reading.problems.append(broken.problem)
            self.complete = False
            return None
        circle = [other.name for other in chain if _same(other, text)]
        if circle:
            names = " -> ".join([*(other.name for other in chain), text.name])
            self.reading.problems.append(span.problem(f"the manifests {names} go round in a circle"))
            self.complete = False
            return None
        if len(self.sources) >= _MOST_TEXTS:
            raise Broken(span.problem(f"a manifest is made of at most {_MOST_TEXTS} texts"))
        shown_as = os.path.normpath(FilePath(asking.name).parent / name) if text.file and is_file_name(name) else name
        return attrs.evolve(text, name=shown_as, notes=(f"{verb} at {span.place}", *asking.notes))


def _same(one: SourceText, other: SourceText) -> bool:
    if one.file is None or other.file is None:
        return one.name == other.name
    return one.file.resolve() == other.file.resolve()


def _without(node: Map, key: str) -> Map:
    entries = {name: entry for name, entry in node.entries.items() if name != key}
    return map_of(entries, node.span, head=node.head, notes=node.notes)


def _lay(base: Map, over: Map) -> Map:
    """One whole manifest on another: what both require stays required."""
    merged = merge(base, over)
    assert isinstance(merged, Map)
    lists = [m.entries["requires"].value for m in (base, over) if "requires" in m.entries]
    both = [node for node in lists if isinstance(node, List)]
    if len(both) < 2:
        return merged
    known = {item.value: item for node in both for item in node.items if isinstance(item, Scalar)}
    odd = [item for node in both for item in node.items if not isinstance(item, Scalar)]
    requires = list_of([*known.values(), *odd], both[1].span, head=both[1].head)
    entry = MapItem(merged.entries["requires"].key, requires)
    return map_of({**merged.entries, "requires": entry}, merged.span, head=merged.head, notes=merged.notes)


def _not_a_mapping(node: Node, source: SourceText) -> ManifestProblem:
    expected = "a mapping with version:, name:, model: and groups:"
    if isinstance(node, Scalar) and node.value is None:
        return TextSpan(source, 0, 0).problem("the manifest is empty", expected=expected)
    if isinstance(node, Gap):
        return node.span.problem("the manifest cannot be read", expected=expected)
    return node.span.problem(f"the root of a manifest cannot be {shown(plain(node))}", expected=expected)
