"""The graph that a manifest's model lowers to: plain data, no torch.

Every node has a stable dotted name such as ``model.blocks.3.attention`` which errors, plans, parameters, freezing
patterns, metrics and checkpoints share.  A parameter is called ``<node>.<weight>``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import attrs
from caramba_document.suggestions import listing, unknown

from caramba_core.components import Attention, Embedder, Layer, Topology
from caramba_core.errors import InputError

__all__ = ["MAX_APPLICATIONS", "MAX_NODES", "MAX_VALUES", "RESERVED", "ROOT", "Graph", "Names", "Node", "local_name"]
__all__ += ["matches", "name_fault", "trained_nodes"]

MAX_NODES: Final = 20_000
"""Nodes that a model may have once its repetitions are spelled out."""

MAX_APPLICATIONS: Final = 1_000_000
"""Nodes that one pass may run, those that are applied several times counted as often."""

MAX_VALUES: Final = 1 << 40
"""Values that one tensor may have, a weight or what a cache keeps of one token: 4 TiB in float32."""

ROOT: Final = "model"
"""First part of every node's name."""

RESERVED: Final = frozenset(
    """
    T_destination add_module apply bfloat16 bodies body_named buffers call_super_init children compile
    config cpu cuda double dump_patches embedder eval extra_repr float forward get_buffer get_extra_state
    get_parameter get_submodule graph half head head_weight hidden ipu join joint_weights load_state_dict logits
    modules mtia named_buffers named_children named_modules named_parameters new_cache parameters products
    register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ run
    set_extra_state set_submodule share_memory site state_dict tap tapped to to_empty train training type width wiring
    xpu zero_grad
    """.split()  # noqa: SIM905 - a hundred quotes would hide the names
)
"""Names that the modules of a built model use themselves."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


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


def trained_nodes(graph: Graph, patterns: Collection[str]) -> frozenset[str]:
    """Names of the nodes that the patterns match; :class:`InputError` for a pattern that matches none."""
    names = list(graph.nodes())
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if matches(name, pattern)]
        if not found:
            raise _unmatched(pattern, names)
        chosen.update(found)
    return frozenset(chosen)


def _unmatched(pattern: str, names: Collection[str]) -> InputError:
    last = {name.rsplit(".", 1)[-1] for name in names}
    # the index of a block and the number of a second norm are no roles
    roles = sorted(part for part in last if not part.rpartition("_")[2].isdigit())
    right = f"a pattern of node names such as {listing(roles)}, blocks.[0-7].attention"
    known = [*roles, *map(local_name, names)]
    message, expected = unknown(f"{pattern!r} matches no node of the model", local_name(pattern), known, right)
    return InputError(message, expected=expected)


# ------------------------------------------------------------------------------------------------ how nodes get names


def name_fault(name: str) -> str | None:
    """Why a node cannot have this name, if so."""
    if not _NAME.fullmatch(name):
        return f"{name!r} cannot be a node's name: a letter comes first, then letters, digits and underscores"
    if name in RESERVED:
        return f"{name!r} cannot be a node's name: built modules use it themselves"
    return None


class Names:
    """Hands out the local names of one scope, in the order of its layers: a layer's own name, else its role.

    Names that layers give themselves are theirs wherever they stand; a role taken so moves on to the next number:
    of two norms of which the second is called ``norm`` by hand, the first is ``norm_2``.
    """

    def __init__(self, layers: Sequence[Layer], *, reserved: Collection[str] = ()) -> None:
        self._given = {layer.name for layer in _in_scope(layers) if layer.name is not None}
        self._taken = set(reserved)

    def give(self, layer: Layer) -> str:
        """The name of the next layer of the scope; layers must come in order."""
        if layer.name is not None:
            name = layer.name
        else:
            name, number = layer.role, 1
            while name in self._given or name in self._taken:
                number += 1
                name = f"{layer.role}_{number}"
        self._taken.add(name)
        return name

    def used(self, name: str) -> bool:
        """Whether a node of the scope already has this name."""
        return name in self._taken


def _in_scope(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers that share a scope: an inline topology without a name leaves its layers where it stands."""
    for layer in layers:
        if isinstance(layer, Topology) and layer.inline is not None and layer.name is None:
            for body in layer.bodies():
                yield from _in_scope(body.layers)
        else:
            yield layer
