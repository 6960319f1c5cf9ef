"""Learning rates by node: which factor of a run's rate each parameter moves with (light)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from caramba_core.errors import InputError, InvalidValue
from caramba_core.graph import Graph, trained_nodes

if TYPE_CHECKING:
    from torch import nn

__all__ = ["node_factors", "parameter_groups"]


def node_factors(graph: Graph, factors: Mapping[str, float], trained: frozenset[str]) -> dict[str, float]:
    """The factor of each node that ``factors``, patterns to factors, name.

    ``trained`` are the names of nodes of which something trains.  Raises :class:`InvalidValue` of ``train`` for a
    pattern that names nothing that trains, and for a node that patterns give different factors.
    """
    found: dict[str, float] = {}
    by: dict[str, str] = {}
    for pattern, factor in factors.items():
        within = ("lr_factors", pattern)
        try:
            nodes = trained_nodes(graph, (pattern,))
        except InputError as error:
            raise InvalidValue("train", error.message, expected=error.expected, within=within) from error
        if not nodes & trained:
            raise InvalidValue(
                "train",
                f"nothing that {pattern!r} names trains",
                expected="patterns of nodes that train",
                within=within,
            )
        for node in sorted(nodes):
            if found.setdefault(node, factor) != factor:
                raise InvalidValue(
                    "train",
                    f"{node} has the factor {found[node]:g} of {by[node]!r}, and {factor:g} of {pattern!r}",
                    expected="patterns that name different nodes",
                    within=within,
                )
            by.setdefault(node, pattern)
    return found


def parameter_groups(
    graph: Graph, parameters: Iterable[tuple[str, nn.Parameter]], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups that an optimizer gets: parameters that move alike, each with its ``lr_factor``.

    Embedder and head are apart, as ``tables``: they hold a row a token, and some optimizers treat them so.  ``factors``
    are those of :func:`node_factors`.
    """
    tables, nodes = {graph.embedder.name, graph.head.name}, graph.nodes()
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        node = name.rpartition(".")[0]
        while node not in nodes:  # of an adapter, which lies within the matrix that it is added to
            node = node.rpartition(".")[0]
        key = node in tables, factors.get(node, 1.0)
        kind = {"tables": True} if key[0] else {}
        groups.setdefault(key, {"params": [], "lr_factor": key[1], **kind})["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
