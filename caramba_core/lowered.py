"""The graphs of a manifest that has been read, with faults where its user wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from caramba_document.problem import Fault, ManifestProblem, Path, in_order
from caramba_document.tree import problem_at

from caramba_core.errors import Faults, InputError, InvalidValue, ManifestError
from caramba_core.graph import Graph
from caramba_core.lowering import lower

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded
    from caramba_core.manifest.schema import Group

__all__ = ["blaming", "group_path", "located", "lower_all", "lower_group"]


def lower_group(loaded: Loaded, group: Group) -> Graph:
    """The graph of one group's model; raises :class:`ManifestError` with every fault."""
    return _lowered(loaded, [group])[0]


def lower_all(loaded: Loaded) -> tuple[Graph, dict[str, Graph]]:
    """The graph of the manifest's own model and those of its groups, by name.

    Raises :class:`ManifestError` with the faults of all of them; groups that share a model share its faults.
    """
    groups = loaded.manifest.groups
    own, *graphs = _lowered(loaded, [None, *groups])
    return own, {group.name: graph for group, graph in zip(groups, graphs, strict=True)}


def _lowered(loaded: Loaded, groups: Iterable[Group | None]) -> list[Graph]:
    """The graphs of groups' models, the manifest's own in place of ``None``."""
    graphs: list[Graph] = []
    faults: list[Fault] = []
    for group in groups:
        place = () if group is None else group_path(loaded, group)
        try:
            graphs.append(lower((group or loaded.manifest).model, (*place, "model")))
        except Faults as error:
            faults.extend(error.faults)
    if faults:
        raise ManifestError(located(loaded, faults))
    return graphs


def group_path(loaded: Loaded, group: Group) -> Path:
    """Where a group stands in the resolved manifest."""
    return "groups", next(index for index, other in enumerate(loaded.manifest.groups) if other is group)


def located(loaded: Loaded, faults: Sequence[Fault]) -> tuple[ManifestProblem, ...]:
    """Faults where the user wrote what is at fault, each place and message once, in the order of the file."""
    return tuple(in_order(problem_at(loaded.tree, fault) for fault in faults))


@contextmanager
def blaming(loaded: Loaded, *path: str | int) -> Iterator[None]:
    """What is wrong with an input or a value in the block, as an error at the path that named it in the manifest."""
    try:
        yield
    except InputError as error:
        fault = Fault(path=path, message=error.message, expected=error.expected, hint=error.hint)
        raise ManifestError(located(loaded, [fault])) from error
    except InvalidValue as error:
        raise ManifestError(located(loaded, [Fault.of(error, *path)])) from error
