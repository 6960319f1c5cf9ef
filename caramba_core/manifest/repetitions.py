"""Changing some repetitions of a topology that repeats its layers.

Such a topology has ``layers`` and ``repeat``; ``each`` gives fields a value a repetition; ``variants`` are other
layers, and ``order`` says for each repetition which it has: 0 for ``layers``, k for the k-th of ``variants``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from caramba_core.manifest.problem import Path
from caramba_core.manifest.tree import List, Map, MapItem, Node, Scalar, find, plain, replaced_at

__all__ = ["Change", "Repeated"]

Change = Callable[[Node], Node]
"""The layer that takes the place of one."""


@attrs.define
class Repeated:
    """A repeating topology and what changes in it."""

    topology: Map
    changes: dict[int, dict[Path, Change]] = attrs.field(factory=dict)
    names: dict[str, Path] = attrs.field(factory=dict)

    def change(self, index: int, name: str, inner: Path, change: Change) -> None:
        """Change the layer at ``inner`` (in the topology) of one repetition; ``name`` is the node's in it."""
        self.changes.setdefault(index, {})[inner] = change
        self.names[name] = inner

    def spelled_out(self) -> Map:
        """The topology with its changes made; repetitions that are alike share their layers."""
        entries = dict(self.topology.entries)
        values = entries.pop("each", None)
        each = dict(values.value.entries) if values is not None and isinstance(values.value, Map) else {}
        repeat = plain(entries["repeat"].value) if "repeat" in entries else 1
        touched = {key: each.pop(key) for key in list(each) if self._node_of(key) is not None}
        distinct: list[tuple[Any, Node]] = []
        order: list[int] = []
        for index in range(repeat):
            layers = find(self._repetition(index, touched), ("layers",)).node
            data = plain(layers)
            place = next((i for i, (other, _) in enumerate(distinct) if other == data), len(distinct))
            if place == len(distinct):
                distinct.append((data, layers))
            order.append(place)
        span = self.topology.span
        entries["layers"] = MapItem(entries["layers"].key, distinct[0][1])
        if each and values is not None:
            entries["each"] = MapItem(values.key, Map(each, values.value.span))
        if len(distinct) > 1:
            entries["variants"] = MapItem(span, List(tuple(layers for _, layers in distinct[1:]), span))
            entries["order"] = MapItem(span, List(tuple(Scalar(place, span) for place in order), span))
        return Map(entries, span, head=self.topology.head, notes=self.topology.notes)

    def _node_of(self, key: str) -> str | None:
        """The changed node that a key of ``each`` is about."""
        return next((name for name in self.names if key.startswith(f"{name}.")), None)

    def _repetition(self, index: int, touched: dict[str, MapItem]) -> Node:
        """The topology as one repetition has it."""
        node: Node = self.topology
        for key, entry in touched.items():
            name = self._node_of(key)
            assert name is not None
            if isinstance(entry.value, List) and index < len(entry.value.items):
                fields = key.removeprefix(f"{name}.").split(".")
                node = replaced_at(node, (*self.names[name], *fields), entry.value.items[index])
        for inner, change in self.changes.get(index, {}).items():
            node = replaced_at(node, inner, change(find(node, inner).node))
        return node
