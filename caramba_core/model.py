"""The model that a manifest describes: embedder, layers and head."""

from __future__ import annotations

from typing import Literal

from caramba_core.component import Embedder, Head, Topology, component, option

__all__ = ["Model"]


@component
class Model:
    """A transformer as a manifest describes it; :func:`caramba_core.lowering.lower` makes its graph."""

    type: Literal["transformer"] = option(default="transformer", help="the only shape there is so far")
    tied_embeddings: bool = option(default=False, help="the head reads the embedder's matrix")
    embedder: Embedder = option(help="what turns token ids into vectors")
    topology: Topology = option(help="the layers")
    head: Head | None = option(
        default=None, implied=True, help="what turns vectors into logits; the default head if not given"
    )
