"""YAML and JSON text to a located tree, from a parser's events: without constructors, nothing can be executed.

Bounds hold while events arrive: what nests or expands too far is refused before it is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from yaml import events
from yaml.cyaml import CParser
from yaml.error import Mark, MarkedYAMLError

from caramba_document.problem import shown
from caramba_document.reading import Reading, check_depth
from caramba_document.scalars import BadScalarError, resolve_scalar
from caramba_document.source import SourceText, TextSpan, check_characters
from caramba_document.suggestions import nearest, suggestion
from caramba_document.syntax import explain_anchor, explain_json, explain_yaml
from caramba_document.tree import Gap, List, Map, MapItem, Node, Scalar, noted

__all__ = ["read_text"]

_CORE: Final = "tag:yaml.org,2002:"
_TAGGED: Final = {"!!int": int, "!!float": float, "!!bool": bool, "!!null": type(None), "!!str": str, "!": str}
_PREFIX: Final = re.compile(r"(?:[&!]\S*\s+)+")
"""Anchor and tag in front of a node: a mark belongs on the value."""

_YAML_1_1: Final = re.compile("[\x85\u2028\u2029]|(?<![^\r\n])\ufeff")
"""What libyaml reads as YAML 1.1 did: as the end of a line, or, in front of one, as nothing."""

_DIRECTIVE: Final = re.compile(r"^%.*$", re.MULTILINE)
_HEAD: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n|%[^\n]*\n)*")
"""What may stand in front of a document."""

_NO_VALUE: Final = re.compile("[\x00\ud800-\udfff]")
_JSON_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]|[^][{},:"\s]+')
_JSON_START: Final = {"{": events.MappingStartEvent, "[": events.SequenceStartEvent}


def read_text(source: SourceText, reading: Reading) -> Node:
    """The tree of a text: JSON in a file of that suffix, else YAML.

    What can be skipped (a duplicate key, a foreign tag) is noted as a problem and leaves a gap; raises
    :class:`~caramba_document.source.Broken` where reading cannot go on.
    """
    is_json = source.file is not None and source.file.suffix.lower() == ".json"
    return _Builder(source, reading, _json_events(source) if is_json else _yaml_events(source)).document()


# ------------------------------------------------------------------------------------------------ events


def _yaml_events(source: SourceText) -> Iterator[Any]:
    """The parser's events; whatever it raises becomes a problem with a place."""
    check_characters(source)  # a preset's text comes from no file
    unlike = _YAML_1_1.search(source.text)
    if unlike is not None:
        code = f"{ord(unlike[0]):04X}"
        message, hint = f"the character U+{code} must be escaped", f'in double quotes, write "\\u{code}"'
        if code == "FEFF":
            message, hint = "a byte order mark stands here", "delete it, though editors do not show it"
        raise TextSpan(source, *unlike.span()).broken(message, hint=hint)
    parser = CParser(_without_directives(source))
    while True:
        try:
            if not parser.check_event():
                return
            event = parser.get_event()
        except MarkedYAMLError as error:
            raise explain_yaml(error, source) from None
        yield event


def _without_directives(source: SourceText) -> str:
    """The text with ``%YAML 1.2`` made a comment, which changes no offset; other directives are refused."""
    head = _HEAD.match(source.text)
    assert head is not None
    for directive in _DIRECTIVE.finditer(head[0]):
        if directive[0].split()[:2] != ["%YAML", "1.2"]:
            span = TextSpan(source, *directive.span())
            raise span.broken("this directive is not allowed", expected="YAML 1.2", hint="leave the line out")
    return head[0].replace("%", "#") + source.text[head.end() :]


def _json_events(source: SourceText) -> Iterator[Any]:
    """The events of a JSON text (RFC 8259), as YAML's parser would give them."""
    try:
        if source.text.strip():
            json.loads(source.text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        raise explain_json(source, error.pos, error.msg) from None
    except RecursionError:
        pass  # the tree will be refused for its depth
    for token in _JSON_TOKEN.finditer(source.text):
        text = token[0]
        start, end = (Mark("", index, 0, 0, None, None) for index in token.span())
        if text in ("NaN", "Infinity", "-Infinity"):  # which Python reads
            raise explain_json(source, token.start(), "Expecting value")
        if text in _JSON_START:
            yield _JSON_START[text](None, None, True, start, end, flow_style=True)
        elif text in ("}", "]"):
            yield events.CollectionEndEvent(start, end)
        elif text.startswith('"'):
            yield events.ScalarEvent(None, None, (False, True), json.loads(text), start, end)
        else:
            yield events.ScalarEvent(None, None, (True, False), text, start, end)


# ------------------------------------------------------------------------------------------------ the tree


class _Builder:
    def __init__(self, source: SourceText, reading: Reading, stream: Iterator[Any]) -> None:
        self.source = source
        self.reading = reading
        self.stream = stream
        self.end = 0
        """Offset behind the list or mapping that ended last."""
        self.anchors: dict[str | None, Node | None] = {}
        """What each anchor stands for (``None`` collects all without): ``None`` until its list or mapping has ended."""

    def document(self) -> Node:
        """The value of the one document; null where there is none."""
        root: Node | None = None
        for event in self.stream:
            if isinstance(event, events.DocumentStartEvent) and root is not None:
                raise self._span(event).broken("a second document starts here", expected="one document")
            if isinstance(event, events.NodeEvent):
                root = self._node(event, 0)
        return root or Scalar(None, TextSpan(self.source, 0, 0))

    def _span(self, event: Any) -> TextSpan:
        start, end = event.start_mark.index, event.end_mark.index
        prefix = _PREFIX.match(self.source.text, start)
        if prefix is not None:
            start = min(prefix.end(), end) if isinstance(event, events.ScalarEvent) else prefix.end()
        return TextSpan(self.source, start, max(start, end))

    def _node(self, event: Any, depth: int, key: TextSpan | None = None) -> Node:
        """The value that begins with an event, inside of ``depth`` others and behind ``key``."""
        span = self._span(event)
        node: Node
        if isinstance(event, events.AliasEvent):
            node = self._alias(event.anchor, depth, span)
        elif isinstance(event, events.ScalarEvent):
            node = self.anchors[event.anchor] = self._scalar(event, span)
        else:
            head = span if event.flow_style or key is None else key
            node = self.anchors[event.anchor] = self._collection(event, depth + 1, span, head)
        self.reading.write(1, node.span)
        return node

    def _alias(self, anchor: str, depth: int, span: TextSpan) -> Node:
        if anchor not in self.anchors:
            near = [f"*{name}" for name in nearest(anchor, filter(None, self.anchors))]
            return self.reading.gap(span, f"no anchor &{anchor} comes before this{suggestion(near)}")
        target = self.anchors[anchor]
        if target is None:
            raise span.broken(f"*{anchor} stands inside &{anchor} itself, so it would never end")
        self.reading.write(target.size, span)
        check_depth(depth + target.depth, span)
        return noted(target, f"through *{anchor} at {span.place}")

    def _scalar(self, event: Any, span: TextSpan) -> Scalar | Gap:
        tag = _tag(event)
        value = event.value
        if event.anchor and value.startswith(":"):  # libyaml ends the name there, YAML 1.2 does not
            written = TextSpan(self.source, event.start_mark.index, event.end_mark.index)
            if f"&{event.anchor}:" in self.source.text[written.start : written.end]:
                raise explain_anchor(written)
        try:
            if (tag or event.implicit[0]) and _TAGGED.get(tag) is not str:
                value = resolve_scalar(value)
        except BadScalarError as error:
            expected = "an integer of at most 64 bits, or a number up to 1.8e308"
            return self.reading.gap(span, str(error), expected=expected)
        if tag and type(value) is not _TAGGED.get(tag):
            return self._foreign(tag, span)
        bad = _NO_VALUE.search(value) if isinstance(value, str) else None
        if bad is not None:
            return self.reading.gap(span, f"the character U+{ord(bad[0]):04X} cannot stand in a value")
        return Scalar(value, span)

    def _foreign(self, tag: str, span: TextSpan) -> Gap:
        hint = "components are named by type:; nothing in a manifest names code"
        return self.reading.gap(span, f"the tag {tag} is not allowed", expected="plain values", hint=hint)

    # ------------------------------------------------------------------------------------------ lists and mappings

    def _collection(self, event: Any, depth: int, span: TextSpan, head: TextSpan) -> Node:
        """A list or mapping up to its end; ``head`` is what to point at where it lacks something."""
        check_depth(depth, span)
        is_map = isinstance(event, events.MappingStartEvent)
        tag = _tag(event)
        gap = None if tag in ("", "!!map" if is_map else "!!seq") else self._foreign(tag, span)
        self.anchors[event.anchor] = None
        content = self._entries(depth) if is_map else tuple(self._node(inner, depth) for inner in self._inside())
        whole = TextSpan(self.source, span.start, self.end)
        if gap is not None:
            return gap
        return Map(content, whole, head=head) if isinstance(content, dict) else List(content, whole, head=head)

    def _inside(self) -> Iterator[Any]:
        """The events up to the end of a list or mapping."""
        for event in self.stream:
            if isinstance(event, events.CollectionEndEvent):
                self.end = event.end_mark.index
                return
            yield event

    def _entries(self, depth: int) -> dict[str, MapItem]:
        """The entries of a mapping with those that ``<<`` brings in: its own win, then the ones named first."""
        own: dict[str, MapItem] = {}
        brought: dict[str, MapItem] = {}
        for event in self._inside():
            span = self._span(event)
            if isinstance(event, events.ScalarEvent) and event.implicit[0] and event.value == "<<":
                self._merge(self._node(next(self.stream), depth, span), span, brought)
                continue
            name = self._key(event, span, own, depth)
            value = self._node(next(self.stream), depth, span)
            if name is not None:
                own[name] = MapItem(span, value)
        return {**{name: item for name, item in brought.items() if name not in own}, **own}

    def _key(self, event: Any, span: TextSpan, before: Mapping[str, MapItem], depth: int) -> str | None:
        """A key; ``None`` for one that is refused."""
        if isinstance(event, events.ScalarEvent):
            node = self._scalar(event, span)
            if isinstance(node, Gap):
                return None
            if isinstance(node.value, str) and node.value not in before:
                return node.value
            if isinstance(node.value, str):
                first = f"first given at {before[node.value].key.place}"
                self.reading.gap(span, f"the key {node.value!r} is given twice", hint="keep one", notes=(first,))
                return None
            what = shown(node.value)
        elif isinstance(event, events.AliasEvent):
            what = "an alias"
        else:
            what = "a mapping" if isinstance(event, events.MappingStartEvent) else "a list"
            self._node(event, depth)
        text = self.source.text[span.start : span.end]
        hint = f'quote it: "{text}"' if text.replace(".", "").isalnum() else None
        self.reading.gap(span, f"a key must be a string, this is {what}", expected="a string", hint=hint)
        return None

    def _merge(self, value: Node, span: TextSpan, brought: dict[str, MapItem]) -> None:
        for base in value.items if isinstance(value, List) else (value,):
            if isinstance(base, Map):
                self.reading.write(base.size, span)
                for name, item in base.entries.items():
                    brought.setdefault(name, MapItem(item.key, noted(item.value, f"merged by << at {span.place}")))
            elif not isinstance(base, Gap):
                self.reading.gap(span, "<< merges a mapping or a list of mappings", expected="an alias")


def _tag(event: Any) -> str:
    return str(event.tag or "").replace(_CORE, "!!")
