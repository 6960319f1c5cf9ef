"""Models that a manifest takes from elsewhere: ``model: {from: NAME, ...}``, with the name of a component ``origin``.

They are spelled out before the manifest is structured, as data in which every value knows its place.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, Protocol

from caramba_document.problem import Fault, Path, shown
from caramba_document.reading import Reading
from caramba_document.tree import Gap, Map, Node, find, plain, problem_at, replaced_at

from caramba_core.errors import PluginError
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


def spell_out_models(tree: Map, registry: Registry, reading: Reading, folder: FilePath, *, fetch: bool) -> Any:
    """The manifest with every model that has ``from:`` spelled out."""
    origins: dict[str, Origin] = {}  # one for each name

    def model(asked: Map, group: Node | None, path: Path) -> Node:
        name = asked.entries["from"].value
        if isinstance(name, Gap):  # which is reported already
            return name
        try:
            if name.text is None:
                names = ", ".join(entry.name for entry in registry.entries("origin"))
                said = f"expected the name of an origin, found {shown(plain(name))}"
                raise PluginError(said, expected=names or None)
            if name.text not in origins:
                origin = registry.load(registry.find(("origin",), name.text))
                origins[name.text] = origin(registry, folder, fetch=fetch)
            return origins[name.text].model(asked, group if isinstance(group, Map) else None, path, reading)
        except PluginError as error:
            reading.report(problem_at(tree, Fault.of(error, *path, "from")))
            return Gap(name.span)

    spelled: Node = tree
    groups = tree.items_at("groups")
    places: list[tuple[Path, Node | None]] = [((), next(iter(groups), None))]
    for place, group in [*places, *((("groups", index), group) for index, group in enumerate(groups))]:
        asked = find(tree, (*place, "model"))
        if isinstance(asked, Map) and "from" in asked.entries:
            spelled = replaced_at(spelled, (*place, "model"), model(asked, group, (*place, "model")))
    return spelled
