"""What of a model is compiled: whole blocks, or their layers where too many blocks are one of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs
from torch import nn

from caramba_core.nn.module import ComponentModule, TopologyModule
from caramba_core.nn.sequence import Sequence

__all__ = ["Compilation", "plan_compilation"]

_KINDS: Final = 8
"""Kinds of blocks that are compiled whole: each takes seconds, sizes by layer make one of every block."""


@attrs.frozen
class Compilation:
    """The modules to compile, and the dotted names of the layers that stay as they are."""

    compiled: tuple[nn.Module, ...]
    left: tuple[str, ...]


def plan_compilation(model: nn.Module) -> Compilation:
    """Compile every block whole, unless they are of more than ``_KINDS`` kinds.

    Then a block that is the only one of its kind is compiled layer by layer, and of its layers those whose kind comes
    again somewhere: in a model with attention sizes by layer that is everything but the attentions.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Sequence) and name}
    kinds = _by_kind(blocks)
    if len(kinds) <= _KINDS:
        return Compilation(compiled=tuple(blocks.values()), left=())
    compiled: list[nn.Module] = []
    layers: dict[str, nn.Module] = {}
    for names in kinds:
        if len(names) > 1:
            compiled += [blocks[name] for name in names]
        else:
            layers.update(_layers(names[0], blocks[names[0]]))
    left: list[str] = []
    for names in _by_kind(layers):
        if len(names) > 1:
            compiled += [layers[name] for name in names]
        else:
            left += names
    return Compilation(compiled=tuple(compiled), left=tuple(left))


def _layers(name: str, block: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The layers of a block, those inside topologies with a name of their own included."""
    for path, module in block.named_modules(prefix=name):
        if isinstance(module, ComponentModule) and not isinstance(module, TopologyModule):
            yield path, module


def _by_kind(modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of modules that compute the same but for the values of their weights, together."""
    kinds: list[tuple[Any, list[str]]] = []
    for name, module in modules.items():
        kind = _kind(module)
        for other, names in kinds:
            if other == kind:
                names.append(name)
                break
        else:
            kinds.append((kind, [name]))
    return [names for _, names in kinds]


def _kind(module: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (path, type(inner), *(getattr(inner, name, None) for name in ("config", "width", "wiring")))
        for path, inner in module.named_modules()
    ]
