"""YAML text to a located tree, from ruamel.yaml's parser events: without constructors, nothing can be executed.

Bounds hold while events arrive: what nests or expands too far is refused before it is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from caramba_core.manifest.problem import shown
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.scalars import BadScalarError, resolve_scalar
from caramba_core.manifest.source import Broken, SourceText, TextSpan
from caramba_core.manifest.syntax import explain
from caramba_core.manifest.tree import (
    MAX_DEPTH,
    Gap,
    List,
    Map,
    MapItem,
    Node,
    Scalar,
    list_of,
    map_of,
    noted,
)
from caramba_core.suggestions import nearest, suggestion

__all__ = ["read_yaml"]

_CORE: Final = "tag:yaml.org,2002:"
_PREFIX: Final = re.compile(r"(?:[&!]\S*\s+)+")
"""Anchor and tag in front of a node: a mark belongs on the value."""

_DIRECTIVE: Final = re.compile(r"^%.*$", re.MULTILINE)
_HEAD: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n|%[^\n]*\n)*")
"""What may stand in front of a document."""

_NO_VALUE: Final = re.compile("[\x00\ud800-\udfff]")


def read_yaml(source: SourceText, reading: Reading) -> Node:
    """The tree of a YAML text.

    What can be skipped (a duplicate key, a foreign tag) is noted as a problem and leaves a gap; raises
    :class:`~caramba_core.manifest.source.Broken` where reading cannot go on.
    """
    return _Builder(source, reading).build()


@attrs.define
class _Open:
    """A list or mapping whose end has not come yet."""

    mapping: bool
    span: TextSpan
    anchor: str | None
    items: list[Node] = attrs.field(factory=list)
    entries: dict[str, MapItem] = attrs.field(factory=dict)
    merged: list[tuple[TextSpan, Node]] = attrs.field(factory=list)
    key: str | None = None
    key_span: TextSpan | None = None
    """Set between a key and its value; ``key`` is ``None`` there for a key that was refused."""
    merges: bool = False
    block: bool = False
    is_key: bool = False
    refused: bool = False


def _head(text: str) -> int:
    """Where the lines of comments and directives in front of a document end."""
    head = _HEAD.match(text)
    return 0 if head is None else head.end()


class _Builder:
    def __init__(self, source: SourceText, reading: Reading) -> None:
        self.source = source
        self.problems = reading.problems
        self.budget = reading.written
        self.anchors: dict[str, Node] = {}
        self.open: list[_Open] = []
        self.root: Node | None = None

    def build(self) -> Node:
        documents = 0
        for event in self._events():
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    message = "a second document starts here"
                    raise Broken(self._span(event).problem(message, expected="one document"))
            else:
                self._take(event)
        return Scalar(None, TextSpan(self.source, 0, 0)) if self.root is None else self.root

    def _events(self) -> Iterator[Any]:
        """The parser's events; whatever it raises becomes a problem with a place."""
        yaml = YAML(typ="safe", pure=True)
        _, parser = yaml.get_constructor_parser(self._without_directives())
        while True:
            try:
                if not parser.check_event():
                    return
                event = parser.get_event()
            except MarkedYAMLError as error:
                raise Broken(explain(error, self.source)) from None
            except Exception as error:  # noqa: BLE001 - escapes that are no character, and faults of the parser itself
                index = min(yaml.reader.index, len(self.source.text))
                raise Broken(TextSpan(self.source, index, index + 1).problem(f"this is not YAML: {error}")) from None
            yield event

    def _without_directives(self) -> str:
        """The text with ``%YAML 1.2`` made a comment, which changes no offset; other directives are refused."""
        text = self.source.text
        for directive in _DIRECTIVE.finditer(text, 0, _head(text)):
            if directive[0].split()[:2] != ["%YAML", "1.2"]:
                span = TextSpan(self.source, directive.start(), directive.end())
                raise Broken(
                    span.problem("this directive is not allowed", expected="YAML 1.2", hint="leave the line out")
                )
        return text[: _head(text)].replace("%", "#") + text[_head(text) :]

    def _span(self, event: Any) -> TextSpan:
        start, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) and (
            event.anchor is not None or event.tag is not None
        ):
            prefix = _PREFIX.match(self.source.text, start)
            if prefix is not None:
                start = min(prefix.end(), end) if isinstance(event, ScalarEvent) else prefix.end()
        return TextSpan(self.source, start, max(start, end))

    # -------------------------------------------------------------------------------------------- one event

    def _take(self, event: Any) -> None:
        if isinstance(event, ScalarEvent):
            span = self._span(event)
            if self._expects_key():
                self._take_key(event, span)
                return
            node = self._scalar(event, span)
            if event.anchor is not None:
                self.anchors[event.anchor] = node
            self._add(node)
        elif isinstance(event, AliasEvent):
            span = self._span(event)
            if self._expects_key():
                self._refuse_key(span, "an alias")
                return
            self._add(self._alias(event.anchor, span))
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._start(event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._finish(event)

    def _expects_key(self) -> bool:
        return bool(self.open) and self.open[-1].mapping and self.open[-1].key_span is None

    def _take_key(self, event: ScalarEvent, span: TextSpan) -> None:
        top = self.open[-1]
        plain = event.implicit[0]
        if plain and event.value == "<<":
            top.key, top.key_span, top.merges = None, span, True
            return
        key = event.value if not plain else _quiet(event.value)
        if not isinstance(key, str):
            self._refuse_key(span, shown(key))
        elif key in top.entries:
            first = top.entries[key].key
            self.problems.append(
                span.problem(
                    f"the key {key!r} is given twice", hint="keep one", notes=(f"first given at {first.place}",)
                )
            )
            top.key, top.key_span = None, span
        else:
            self._check_text(key, span)
            top.key, top.key_span = key, span

    def _refuse_key(self, span: TextSpan, what: str) -> None:
        text = self.source.text[span.start : span.end]
        hint = f'quote it: "{text}"' if text.replace(".", "").isalnum() else None
        self.problems.append(span.problem(f"a key must be a string, this is {what}", expected="a string", hint=hint))
        self.open[-1].key, self.open[-1].key_span = None, span

    def _scalar(self, event: ScalarEvent, span: TextSpan) -> Node:
        tag = None if event.tag is None else str(event.tag)
        try:
            if tag is None:
                value = resolve_scalar(event.value) if event.implicit[0] else event.value
            elif tag in ("!", f"{_CORE}str"):
                value = event.value
            elif tag.startswith(_CORE) and type(value := resolve_scalar(event.value)) is _TAGGED.get(tag[len(_CORE) :]):
                pass
            else:
                return self._refuse_tag(tag, span)
        except BadScalarError as error:
            self.problems.append(
                span.problem(str(error), expected="an integer of at most 64 bits, or a number up to 1.8e308")
            )
            return Gap(span)
        return Scalar(value, span) if not isinstance(value, str) or self._check_text(value, span) else Gap(span)

    def _check_text(self, text: str, span: TextSpan) -> bool:
        bad = _NO_VALUE.search(text)
        if bad is not None:
            self.problems.append(span.problem(f"the character U+{ord(bad.group()):04X} cannot stand in a value"))
        return bad is None

    def _refuse_tag(self, tag: str, span: TextSpan) -> Gap:
        short = tag.replace(_CORE, "!!")
        self.problems.append(
            span.problem(
                f"the tag {short} is not allowed",
                expected="plain values",
                hint="components are named by type:; nothing in a manifest names code",
            )
        )
        return Gap(span)

    def _alias(self, anchor: str, span: TextSpan) -> Node:
        if any(frame.anchor == anchor for frame in self.open):
            raise Broken(span.problem(f"*{anchor} stands inside &{anchor} itself, so it would never end"))
        target = self.anchors.get(anchor)
        if target is None:
            near = suggestion([f"*{name}" for name in nearest(anchor, self.anchors)])
            self.problems.append(span.problem(f"no anchor &{anchor} comes before this{near or ''}"))
            return Gap(span)
        self.budget.spend(target.size, span)
        self._check_depth(len(self.open) + target.depth, span)
        return noted(target, f"through *{anchor} at {span.place}")

    # -------------------------------------------------------------------------------------------- lists and mappings

    def _check_depth(self, depth: int, span: TextSpan) -> None:
        if depth > MAX_DEPTH:
            raise Broken(span.problem(f"lists and mappings nest more than {MAX_DEPTH} deep here"))

    def _start(self, event: MappingStartEvent | SequenceStartEvent) -> None:
        mapping = isinstance(event, MappingStartEvent)
        span = self._span(event)
        self._check_depth(len(self.open) + 1, span)
        tag = None if event.tag is None else str(event.tag)
        refused = tag not in (None, f"{_CORE}map" if mapping else f"{_CORE}seq")
        if refused:
            self._refuse_tag(str(tag), span)
        is_key = self._expects_key()
        if is_key:
            self._refuse_key(span, "a mapping" if mapping else "a list")
        self.open.append(_Open(mapping, span, event.anchor, block=not event.flow_style, is_key=is_key, refused=refused))

    def _finish(self, event: Any) -> None:
        frame = self.open.pop()
        span = TextSpan(self.source, frame.span.start, event.end_mark.index)
        parent = self.open[-1] if self.open else None
        head = parent.key_span if frame.block and parent is not None and parent.mapping else frame.span
        node: Node = list_of(frame.items, span, head=head)
        if frame.mapping:
            node = map_of(self._merged(frame), span, head=head)
        if frame.refused:
            node = Gap(span)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = node
        if not frame.is_key:
            self._add(node)

    def _merged(self, frame: _Open) -> dict[str, MapItem]:
        """The entries of a mapping with those that ``<<`` brings in: its own win, then the ones named first."""
        brought: dict[str, MapItem] = {}
        for span, value in frame.merged:
            for base in value.items if isinstance(value, List) else (value,):
                if isinstance(base, Gap):
                    continue
                if not isinstance(base, Map):
                    self.problems.append(span.problem("<< merges a mapping or a list of mappings", expected="an alias"))
                    continue
                self.budget.spend(base.size, span)
                for key, entry in base.entries.items():
                    value_here = noted(entry.value, f"merged by << at {span.place}")
                    brought.setdefault(key, MapItem(entry.key, value_here))
        return {**{key: entry for key, entry in brought.items() if key not in frame.entries}, **frame.entries}

    def _add(self, node: Node) -> None:
        self.budget.spend(1, node.span)
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        if not top.mapping:
            top.items.append(node)
            return
        assert top.key_span is not None
        if top.merges:
            top.merged.append((top.key_span, node))
        elif top.key is not None:
            top.entries[top.key] = MapItem(top.key_span, node)
        top.key, top.key_span, top.merges = None, None, False


_TAGGED: Final[dict[str, type]] = {"int": int, "float": float, "bool": bool, "null": type(None)}


def _quiet(text: str) -> object:
    try:
        return resolve_scalar(text)
    except BadScalarError:
        return 0
