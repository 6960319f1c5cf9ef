"""Folders of a family beyond Llama's own shape, for models that are, part by part, what they started from (light)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caramba_plugins_standard.gqa import GroupedQueryAttention

from caramba_core.graph import Graph, Node
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_plugins_llama.configuration import model_of
from caramba_plugins_llama.exporting import ExportError, Folder, chain, hugging_face_keys, type_of
from caramba_plugins_llama.families import Family
from caramba_plugins_llama.head_rows import head_order, inverse
from caramba_plugins_llama.standard_exporter import USAGE, field_difference

__all__ = ["family_folder"]

Leaf = tuple[Node, tuple[str, ...]]


def family_folder(graph: Graph, family: Family, origin: Mapping[str, Any]) -> Folder:
    """The folder with the configuration of the checkpoint that the model started from.

    Raises :class:`ExportError` naming the first part that is another by now.
    """
    config = {key: value for key, value in origin.items() if key not in ("dtype", "torch_dtype")}
    config |= {"architectures": [family.architecture], "tie_word_embeddings": graph.tied_embeddings}
    again = lower(structure_model(model_of(config, "config.json"), origin="config.json"))
    mine, theirs = list(_leaves(graph)), list(_leaves(again))
    for (one, within), (other, inside) in zip(mine, theirs, strict=False):
        found, expected = (one.name, type_of(one), within), (other.name, type_of(other), inside)
        if found != expected:
            raise ExportError(
                f"{one.name} is {type_of(one)} in {' in '.join(within)}",
                expected=f"{other.name}, {type_of(other)} in {' in '.join(inside)}, as in the {family.model_type} model"
                " that it started from",
            )
        reason = field_difference(one.config, other.config)
        if reason is not None:
            raise ExportError(f"{one.name} is not what it started from: {reason}")
    if len(mine) != len(theirs):
        raise ExportError(f"it has {len(mine)} parts, and the model that it started from {len(theirs)}")
    attention = next(node.config for node, _ in mine if isinstance(node.config, GroupedQueryAttention))
    rotated = next((rope.rotated for node, _ in mine if (rope := getattr(node.config, "rope", None))), None)
    order = head_order(attention.head_dim, rotated or attention.head_dim, adjacent=family.adjacent_pairs)
    return Folder(
        config=config,
        keys=hugging_face_keys(family),
        usage=USAGE,
        order=None if order is None else inverse(order),
    )


def _leaves(graph: Graph) -> Iterator[Leaf]:
    """The nodes that compute something, each with the topologies that it stands in."""
    yield from _below((graph.embedder, graph.topology, graph.head), ())


def _below(nodes: Sequence[Node], within: tuple[str, ...]) -> Iterator[Leaf]:
    for index, node in enumerate(chain(nodes)):
        if not node.scopes:
            yield node, within
        for scope in node.scopes:
            yield from _below(scope.nodes, (*within, f"{type_of(node)} {index}"))
