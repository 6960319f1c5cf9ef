"""Models that a manifest takes from elsewhere: ``model: {from: NAME, ...}``, with the name of a component ``origin``.

They are spelled out before the manifest is structured, as data in which every value knows its place.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Protocol

from caramba_core.document.problem import Path, shown
from caramba_core.document.tree import Gap, List, Map, Node, Scalar, find, plain, replaced_at
from caramba_core.errors import PluginError
from caramba_core.manifest.reading import Reading
from caramba_core.plugins.registry import Registry

__all__ = ["Origin", "spell_out_models"]


class Origin(Protocol):
    """The class that an entry of ``caramba.origin`` names; one is made for each manifest that asks for it.

    ``folder`` is what relative names are relative to.  Without ``fetch`` only what is on this machine may be used.
    """

    def __init__(self, registry: Registry, folder: FilePath, *, fetch: bool) -> None: ...

    def model(self, asked: Map, group: Map | None, path: Path, reading: Reading) -> Node:
        """The whole model that ``asked`` stands for, the mapping with ``from:`` at ``path`` of the manifest.

        ``group`` is the group that it belongs to; the first one for the manifest's own model, if there is one.  What is
        wrong is reported to ``reading``, and a :class:`Gap` stands for what could not be made.
        """
        ...


def spell_out_models(tree: Map, registry: Registry, reading: Reading, folder: FilePath, *, fetch: bool) -> Map:
    """The manifest with every model that has ``from:`` spelled out."""
    listed = tree.get("groups")
    groups = listed.children if isinstance(listed, List) else ()
    origins: dict[str, Origin] = {}
    for place, group in [((), next(iter(groups), None)), *((("groups", i), group) for i, group in enumerate(groups))]:
        path: Path = (*place, "model")
        asked = find(tree, path)
        if asked.missing or not isinstance(asked.node, Map) or "from" not in asked.node.entries:
            continue
        name = asked.node.entries["from"].value
        model: Node = Gap(name.span)
        try:
            if not isinstance(name, Gap):  # else it could not be read, which is reported already
                origin = _origin(name, origins, registry, folder, fetch=fetch)
                model = origin.model(asked.node, group if isinstance(group, Map) else None, path, reading)
        except PluginError as error:
            reading.gap(name.span, error.message, path=(*path, "from"), expected=error.expected, hint=error.hint)
        changed = replaced_at(tree, path, model)
        assert isinstance(changed, Map)
        tree = changed
    return tree


def _origin(name: Node, known: dict[str, Origin], registry: Registry, folder: FilePath, *, fetch: bool) -> Origin:
    """The origin of a name, made once."""
    if not isinstance(name, Scalar) or not isinstance(name.value, str):
        names = ", ".join(entry.name for entry in registry.entries("origin"))
        raise PluginError(f"expected the name of an origin, found {shown(plain(name))}", expected=names or None)
    if name.value not in known:
        known[name.value] = registry.load(registry.find(("origin",), name.value))(registry, folder, fetch=fetch)
    return known[name.value]
