"""Local names of the nodes of one scope: a node's own name, else its role; a second of the same role gets a number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from caramba_core.component import Layer, Topology

__all__ = ["RESERVED", "Names", "name_fault"]

RESERVED: Final = frozenset(
    """
    T_destination add_module apply bfloat16 bodies body_named buffers call_super_init children compile
    config cpu cuda double dump_patches embedder eval extra_repr float forward get_buffer get_extra_state
    get_parameter get_submodule graph half head head_weight hidden ipu load_state_dict logits modules mtia
    named_buffers named_children named_modules named_parameters new_cache parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ run
    set_extra_state set_submodule share_memory site state_dict tap tapped to to_empty train training type width wiring
    xpu zero_grad
    """.split()  # noqa: SIM905 - a hundred quotes would hide the names
)
"""Names that the modules of a built model use themselves."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def name_fault(name: str) -> str | None:
    """Why a node cannot have this name, if so."""
    if not _NAME.fullmatch(name):
        return f"{name!r} cannot be a node's name: a letter comes first, then letters, digits and underscores"
    if name in RESERVED:
        return f"{name!r} cannot be a node's name: built modules use it themselves"
    return None


class Names:
    """Hands out the local names of one scope, in the order of its layers.

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
