"""A built model: token ids in, logits out; plain torch.

Axes: B batch, T tokens of this pass, D width of the residual stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from caramba_core.components import Attention, Storage
from caramba_core.errors import InputError
from caramba_core.graph import Graph, local_name
from caramba_core.nn.cache import Cache
from caramba_core.nn.frame import Frame
from caramba_core.nn.sequence import LayerSequence, Wiring, names_of

__all__ = ["LanguageModel"]


class LanguageModel(LayerSequence):
    """Embedder, layers and head under the names of the graph, without ``model.``.

    ``model.blocks.3.attention`` in a manifest is ``get_submodule("blocks.3.attention")`` here.
    """

    def __init__(
        self, graph: Graph, embedder: nn.Module, layers: dict[str, nn.Module], wiring: Wiring, head: nn.Module
    ) -> None:
        super().__init__(layers, wiring)
        self.graph = graph
        self.embedder = embedder
        self.head = head

    def hidden(self, tokens: Tensor, frame: Frame | None = None) -> Tensor:
        """The input of the head: token ids, int64 ``[B, T]``, to ``[B, T, D]``."""
        if frame is None:
            frame = Frame.of(tokens)
        if frame.starts is not None:
            self._require_starts()
        x = super().forward(self.embedder(tokens), frame)
        if frame.taps is not None:
            frame.taps.flush()
        if frame.cache is not None and frame.ends is None:
            frame.cache.advance(tokens.shape[1])
        return x

    def forward(self, tokens: Tensor, frame: Frame | None = None) -> Tensor:
        """Token ids, int64 ``[B, T]``, to logits ``[B, T, V]``."""
        return self.logits(self.hidden(tokens, frame))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head alone: ``[..., D] -> [..., V]``."""
        logits: Tensor = self.head(hidden, self.head_weight)
        return logits

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix ``[V, D]``; the embedder's where embeddings are tied."""
        owner = self.embedder if self.graph.tied_embeddings else self.head
        weight = owner.weight
        assert isinstance(weight, Tensor)
        return weight

    def new_cache(self, batch: int, *, capacity: int | None = None, storage: Storage | None = None) -> Cache:
        """An empty cache in the model's dtype, on its device, stored as ``storage`` says; see :class:`Cache`."""
        weight = self.head_weight
        return Cache(
            self.graph, batch=batch, dtype=weight.dtype, device=weight.device, capacity=capacity, storage=storage
        )

    def tap(self, names: Sequence[str]) -> None:
        """Make ``frame.taps`` collect inputs and outputs of the nodes with these dotted names, and of no others."""
        wanted = {local_name(name) for name in names}
        for path, module in self.named_modules():
            if isinstance(module, LayerSequence):
                prefix = f"{path}." if path else ""
                module.tapped = frozenset(child for child in names_of(module.wiring) if prefix + child in wanted)
                wanted -= {prefix + child for child in module.tapped}
        assert not wanted, f"no such nodes: {sorted(wanted)}"

    def _require_starts(self) -> None:
        for name, node in self.graph.attentions().items():
            assert isinstance(node.config, Attention)
            if not node.config.takes_starts:
                problem = f"{name} ({type(node.config).__name__}) takes no sequences of unequal lengths in one batch"
                raise InputError(problem, hint="generate from them one by one")
