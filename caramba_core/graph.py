"""The graph that a manifest's model lowers to: plain data, no torch.

Every node has a stable dotted name such as ``model.blocks.3.attention`` which errors, plans, parameters, freezing
patterns, metrics and checkpoints share.  A parameter is called ``<node>.<weight>``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Final

import attrs

from caramba_core.component import Attention, Embedder, Layer

__all__ = ["MAX_NODES", "ROOT", "Graph", "Node", "local_name", "matches"]

MAX_NODES: Final = 20_000
"""Nodes that a model may have once its repetitions are spelled out."""

ROOT: Final = "model"
"""First part of every node's name."""


@attrs.frozen(kw_only=True)
class Node:
    """One component in its place.

    ``name`` is dotted and unique; an inline topology (``residual`` in a list) has the name of its scope and no tensors.
    ``path`` leads to the component in the manifest, for errors.  ``applications`` counts how often one pass runs the
    node, its parents' repetitions included.
    """

    name: str
    config: Layer
    path: tuple[str | int, ...]
    width_in: int
    width_out: int
    applications: int = 1
    inline: bool = False
    scopes: tuple[Scope, ...] = ()

    def walk(self) -> Iterator[Node]:
        """This node and everything below it, in the order of execution."""
        yield self
        for scope in self.scopes:
            for child in scope.nodes:
                yield from child.walk()


@attrs.frozen(kw_only=True)
class Scope:
    """A chain of nodes inside a topology; ``name`` is its dotted name, under which its nodes are named."""

    name: str
    nodes: tuple[Node, ...]
    applications: int = 1


@attrs.frozen(kw_only=True)
class Graph:
    """A whole model: embedder, topology, head."""

    embedder: Node
    topology: Node
    head: Node
    tied_embeddings: bool

    def walk(self) -> Iterator[Node]:
        """Every node, in the order of execution."""
        yield from self.embedder.walk()
        yield from self.topology.walk()
        yield from self.head.walk()

    def nodes(self) -> dict[str, Node]:
        """Every node that has a name of its own, by that name."""
        return {node.name: node for node in self.walk() if not node.inline}

    def attentions(self) -> dict[str, Node]:
        """The nodes that mix tokens, in the order of execution."""
        return {node.name: node for node in self.walk() if isinstance(node.config, Attention)}

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        assert isinstance(self.embedder.config, Embedder)
        return self.embedder.config.vocab_size

    @property
    def d_model(self) -> int:
        """Width of the residual stream behind the embedder."""
        return self.embedder.width_out


def local_name(name: str) -> str:
    """A node's or parameter's name without the leading ``model.``: torch's name for it."""
    return name.removeprefix(f"{ROOT}.")


def matches(name: str, pattern: str) -> bool:
    """Whether a node's name matches a user's pattern.

    Patterns are shell-like (``blocks.[0-7].attention``, ``*.mlp``), with or without the leading ``model.``; a pattern
    without a dot matches the last part of a name (``attention`` is every node in that role, ``norm_2`` included for
    ``norm``).
    """
    short = local_name(name)
    wanted = local_name(pattern)
    if "." not in wanted:
        last = short.rsplit(".", 1)[-1]
        role = last.rsplit("_", 1)[0] if last.rsplit("_", 1)[-1].isdigit() else last
        return fnmatch.fnmatchcase(last, wanted) or fnmatch.fnmatchcase(role, wanted)
    return fnmatch.fnmatchcase(short, wanted)
