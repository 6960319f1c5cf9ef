"""The patterns under ``trains``: which nodes of a model they match."""

from __future__ import annotations

from collections.abc import Collection

from caramba_core.errors import InputError
from caramba_core.graph import Graph, local_name, matches
from caramba_core.suggestions import listing, unknown

__all__ = ["trained_nodes"]


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
