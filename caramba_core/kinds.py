"""The kinds of component, each with the entry-point group that lists it.

Adding a kind here is all the core needs to know of it; what an entry must look like stands in ``docs/plugins.md``.
"""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["HOOKS_GROUP", "KINDS", "LAYER_KINDS", "Kind"]

HOOKS_GROUP: Final = "caramba"
"""Entry-point group of the pluggy modules that hold a distribution's hook implementations."""


@attrs.frozen
class Kind:
    """A kind of component: ``name`` in messages and listings, ``gives`` in one phrase what an entry is."""

    name: str
    gives: str

    @property
    def group(self) -> str:
        """The entry-point group of this kind."""
        return f"{HOOKS_GROUP}.{self.name}"


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("layer", "a config of a layer without a cache"),
        Kind("attention", "a config of a layer that mixes tokens"),
        Kind("embedder", "a config of what turns token ids into vectors"),
        Kind("head", "a config of what turns vectors into logits"),
        Kind("topology", "a config of a layer made of layers"),
        Kind("router", "a config of what weighs branches"),
        Kind("origin", "what a model is taken from, by its from: key"),
        Kind("transplant", "how one attention starts from another's weights, named SOURCE_to_TARGET"),
        Kind("moment", "a streaming collector of calibration statistics"),
        Kind("loader", "a reader of checkpoints"),
        Kind("source", "what fetches checkpoints, named by the scheme of its addresses"),
        Kind("exporter", "a writer of checkpoints for other programs"),
        Kind("tokenizer", "a reader of tokenizers"),
        Kind("dataset", "a source of tokens"),
        Kind("mode", "what a run does, by its mode: key"),
        Kind("strategy", "what a training step is"),
        Kind("optimizer", "how parameters move"),
        Kind("schedule", "how the learning rate moves"),
        Kind("metric", "something measured on held-out tokens"),
        Kind("benchmark", "something measured on a whole model"),
        Kind("preset", "a manifest that a plugin carries"),
        Kind("command", "a subcommand of caramba"),
    )
}

LAYER_KINDS: Final = ("layer", "attention", "topology")
"""Kinds whose components may stand in a list of layers."""
