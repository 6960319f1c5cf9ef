"""Token ids to vectors, vectors to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Cost, Embedder, Head, Normal, Shape, Weight, component, option

__all__ = ["LinearHead", "TokenEmbedder"]


@component
class TokenEmbedder(Embedder):
    """One learned vector a token id."""

    builds: ClassVar[str] = "caramba_plugins_standard.embedding_modules:TokenEmbedderModule"

    d_model: int = option(help="width of the vectors, and of the residual stream", unit="features", minimum=1)
    init_std: float = option(default=0.02, help="standard deviation of the initial vectors", above=0.0)

    def output_width(self, width: int) -> int:
        """``d_model``."""
        return self.d_model

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[V, D]``."""
        return {"weight": Weight(shape=(self.vocab_size, self.d_model), init=Normal(self.init_std))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the token ids stay."""
        return Cost(saved=shape.rows)


@component
class LinearHead(Head):
    """``x weight^T``."""

    builds: ClassVar[str] = "caramba_plugins_standard.embedding_modules:LinearHeadModule"

    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def output_width(self, width: int) -> int:
        """The vocabulary size."""
        assert self.vocab_size is not None, "lowering fills it"
        return self.vocab_size

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[V, D]``, unless it is the embedder's."""
        if self.tied:
            return {}
        return {"weight": Weight(shape=(self.output_width(width), width), init=Normal(self.init_std))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """One product; its input stays."""
        return Cost.product(shape.rows, width, self.output_width(width), saved=shape.rows * width)
