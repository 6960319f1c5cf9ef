"""From names to one tree: files and presets that plugins carry, ``extends:`` and ``include:``.

``extends:`` at the root names a manifest or preset (or a list of them) that this one is laid on; ``include:`` does the
same in any mapping.  Mappings merge key by key, everything else is replaced, and so is a component of another ``type``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Final

import attrs
from caramba_document.problem import Fault, ManifestProblem, shown
from caramba_document.reading import Reading, check_depth
from caramba_document.source import SUFFIXES, Broken, SourceText, TextSpan, read_source
from caramba_document.suggestions import nearest
from caramba_document.texts import read_text
from caramba_document.tree import Gap, List, Map, Node, Scalar, mapped, merge, plain, problem_at

from caramba_core.errors import PluginError
from caramba_core.plugins.registry import Registry

__all__ = ["Composer", "check_requires", "find_source", "is_file_name"]

_MOST_TEXTS: Final = 32
"""Manifests that one may be made of."""

_VERBS: Final = {"extends": "extended", "include": "included"}


def is_file_name(name: str) -> bool:
    """Whether a name means a file: it has a manifest's suffix, or a folder in it."""
    return name.lower().endswith(SUFFIXES) or "/" in name or "\\" in name


def find_source(name: str, folder: FilePath, plugins: Registry, asked: TextSpan | None = None) -> SourceText:
    """The text of a file (relative to ``folder``) or preset; raises :class:`Broken` where there is none.

    ``asked`` is where a manifest names it, for the report; without it the name came from the command line.
    """
    place = asked or TextSpan.nowhere(name)
    if not is_file_name(name):
        return read_source(_preset(name, folder, plugins, place), name)
    if not name.lower().endswith(SUFFIXES):
        raise place.broken("this is not a manifest's file name", expected=", ".join(SUFFIXES))
    try:
        return read_source(folder / name, name)
    except Broken as broken:
        problem = broken.problem
        if problem.line is not None:
            raise
        if asked is not None:
            problem = asked.problem(f"{name}: {problem.message}", expected=problem.expected, hint=problem.hint)
        elif near := nearest(FilePath(name).stem, [entry.name for entry in plugins.entries("preset")]):
            problem = attrs.evolve(problem, hint=problem.hint or f"a preset is named without a suffix: {near[0]}")
        raise Broken(problem) from None


def _preset(name: str, folder: FilePath, plugins: Registry, asked: TextSpan) -> FilePath:
    """The file that a plugin carries under a preset's name."""
    try:
        file: FilePath = plugins.load(plugins.find(("preset",), name))
    except PluginError as error:
        beside = [f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
        hint = f"for the file beside it, write {beside[0]}" if beside else error.hint
        raise asked.broken(error.message, expected=error.expected, hint=hint) from None
    return file


def check_requires(node: Node | None, plugins: Registry) -> list[ManifestProblem]:
    """A problem for each entry of ``requires:`` that is not met; its form is the structure's business."""
    problems = []
    for item in node.children if isinstance(node, List) else ():
        try:
            if item.text is not None:
                plugins.require(item.text)
        except PluginError as error:
            problems.append(problem_at(item, Fault.of(error, "requires")))
    return problems


@attrs.define
class Composer:
    """Reads a manifest and everything that it is made of."""

    reading: Reading
    plugins: Registry
    sources: list[SourceText] = attrs.field(factory=list)
    inherited: dict[str, list[Node]] = attrs.field(factory=dict)
    """Groups by name of the manifests that are extended, the outermost's last: a group may extend them."""
    complete: bool = True
    """Whether everything that is named was found: without a part, what is missing says nothing."""

    def compose(self, source: SourceText, chain: tuple[SourceText, ...] = ()) -> Map:
        """The tree of a manifest; raises :class:`Broken` where there is none, or where ``requires:`` is not met.

        ``chain`` are the manifests that led to this one.
        """
        chain = (*chain, source)
        self.sources.append(source)
        written = self._mapping(read_text(source, self.reading), source)
        unmet = check_requires(written.get("requires"), self.plugins)
        if unmet:
            self.reading.report(*unmet[1:])
            raise Broken(unmet[0])
        root = self._mapping(self._included(written, chain), source)
        base: Map | None = None
        for text in self._named(root, "extends", chain):
            base = _laid(base, self.compose(text, chain))
        for group in () if base is None else base.items_at("groups"):
            if (name := group.text_at("name")) is not None:
                self.inherited.setdefault(name, []).append(group)
        return _laid(base, root.without("extends"))

    def _mapping(self, node: Node, source: SourceText) -> Map:
        """The root of a manifest."""
        if isinstance(node, Map):
            return node
        if isinstance(node, Gap):  # which is reported
            self.complete = False
            return Map({}, node.span)
        expected = "a mapping with version:, name:, model: and groups:"
        if isinstance(node, Scalar) and node.value is None:
            raise TextSpan(source, 0, 0).broken("the manifest is empty", expected=expected)
        raise node.span.broken(f"the root of a manifest cannot be {shown(plain(node))}", expected=expected)

    def _included(self, node: Node, chain: tuple[SourceText, ...], depth: int = 0) -> Node:
        """The tree with every ``include:`` in it filled in; the same node where there is none."""
        check_depth(depth, node.span)
        node = mapped(node, lambda child: self._included(child, chain, depth + 1))
        if not isinstance(node, Map) or "include" not in node.entries:
            return node
        own = node.without("include")
        base: Node | None = None
        for text in self._named(node, "include", chain):
            self.sources.append(text)
            other = self._included(read_text(text, self.reading), (*chain, text), depth)
            base = other if base is None else merge(base, other)
        if base is None or not own.entries:
            return base or own
        if not isinstance(base, Map):
            message = f"only a mapping can be extended, {base.span.source.name} holds {shown(plain(base))}"
            self.reading.gap(node.entries["include"].key, message)
        return merge(base, own)

    def _named(self, node: Map, key: str, chain: tuple[SourceText, ...]) -> Iterator[SourceText]:
        """The texts that an ``extends:`` or ``include:`` names, each to be laid on the ones before it."""
        names = node.get(key)
        for item in names.items if isinstance(names, List) else (names,) if names is not None else ():
            if item.text is None:
                self.reading.mismatch(item, "a file name or a preset's name", (key,))
            elif (text := self._open(item.text, item.span, chain, _VERBS[key])) is not None:
                yield text
                continue
            self.complete = False

    def _open(self, name: str, span: TextSpan, chain: tuple[SourceText, ...], verb: str) -> SourceText | None:
        asking = span.source
        try:
            folder = asking.file.parent if asking.file is not None else FilePath.cwd()
            text = find_source(name, folder, self.plugins, span)
        except Broken as broken:
            self.reading.report(broken.problem)
            return None
        assert text.file is not None
        if text.file.resolve() in [other.file.resolve() for other in chain if other.file is not None]:
            names = " -> ".join([*(other.name for other in chain), text.name])
            self.reading.gap(span, f"the manifests {names} go round in a circle")
            return None
        if len(self.sources) >= _MOST_TEXTS:
            raise span.broken(f"a manifest is made of at most {_MOST_TEXTS} texts")
        shown_as = os.path.normpath(FilePath(asking.name).parent / name) if is_file_name(name) else name
        return attrs.evolve(text, name=shown_as, notes=(f"{verb} at {span.place}", *asking.notes))


def _laid(base: Map | None, over: Map) -> Map:
    """One whole manifest on another: what both require stays required."""
    if base is None:
        return over
    merged = merge(base, over)
    assert isinstance(merged, Map)
    lists = [node for node in (base.get("requires"), over.get("requires")) if isinstance(node, List)]
    if len(lists) < 2:
        return merged
    items = {repr(plain(item)): item for node in lists for item in node.items}
    return merged.set("requires", List(tuple(items.values()), lists[1].span, head=lists[1].head))
