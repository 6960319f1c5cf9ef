"""The kinds of component, each with the entry-point group that lists it and what an entry must be.

A plugin declares a kind of its own in the group ``caramba.kind``: ``NAME = "package.module:Base"``.
"""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["HOOKS_GROUP", "KINDS", "LAYER_KINDS", "Kind"]

HOOKS_GROUP: Final = "caramba"
"""Entry-point group of the pluggy modules that hold a distribution's hook implementations."""


@attrs.frozen
class Kind:
    """A kind of component: ``name`` in messages and listings, ``gives`` in one phrase what an entry is.

    ``contract`` is the import path of the class that entries are derived from, or of the protocol that they follow.
    """

    name: str
    gives: str
    contract: str | None = None

    @property
    def group(self) -> str:
        """The entry-point group of this kind."""
        return f"{HOOKS_GROUP}.{self.name}"


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("layer", "a config of a layer without a cache", "caramba_core.components:Layer"),
        Kind("attention", "a config of a layer that mixes tokens", "caramba_core.components:Attention"),
        Kind("embedder", "a config of what turns token ids into vectors", "caramba_core.components:Embedder"),
        Kind("head", "a config of what turns vectors into logits", "caramba_core.components:Head"),
        Kind("topology", "a config of a layer made of layers", "caramba_core.components:Topology"),
        Kind("origin", "what a model is taken from, by its from: key", "caramba_core.manifest.origins:Origin"),
        Kind("dataset", "a source of tokens", "caramba_core.datasets:Dataset"),
        Kind("mode", "a config of what a run does, named by its mode: key", "caramba_core.modes:Run"),
        Kind("storage", "how a cache stores keys and values in fewer bytes", "caramba_core.components:Storage"),
        Kind("reader", "what finds and reads pretrained models", "caramba_core.teachers:Reader"),
        Kind("evaluator", "what is measured before and after a run", "caramba_core.modes:Evaluator"),
        Kind("preset", "a manifest that a plugin carries"),
        Kind("command", "a subcommand of caramba"),
        Kind("completer", "what the shell offers for a parameter of commands"),
    )
}

LAYER_KINDS: Final = ("layer", "attention", "topology")
"""Kinds whose components may stand in a list of layers."""
