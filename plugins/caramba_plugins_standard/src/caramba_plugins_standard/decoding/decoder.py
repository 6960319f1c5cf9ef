"""A model that decodes: sequences in a cache of fixed capacity that grow by one token a step.

Axes: B batch, T tokens of this pass, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.storage import Storage

__all__ = ["Decoder"]


class Decoder:
    """Sequences that grow by one token a step, in a cache with room for ``capacity`` tokens of each.

    Tokens go in from the device and logits stay there: reading them is the caller's decision.
    """

    def __init__(self, model: LanguageModel, *, batch: int, capacity: int, storage: Storage | None = None) -> None:
        self.model = model
        self.capacity = capacity
        self.cache = model.new_cache(batch, capacity=capacity, storage=storage)
        self._starts: Tensor | None = None

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, starts: Tensor | None = None) -> Tensor:
        """Take token ids, int64 ``[B, T]``, into the cache: the last one's logits ``[B, V]``.

        Sequences of unequal lengths are padded on the left; ``starts``, int64 ``[B]``, says where each begins.  May be
        called again for tokens that follow.
        """
        assert self.cache.length + tokens.shape[1] <= self.capacity, "the cache has no room for these tokens"
        if starts is not None:
            self._starts = starts
        hidden = self.model.hidden(tokens, Frame.of(tokens, cache=self.cache, starts=self._starts))
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Tensor) -> Tensor:
        """One more token of each sequence, int64 ``[B]``: logits ``[B, V]``, which hold until the next step."""
        return self.prefill(tokens[:, None])

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens of each sequence; what is cached stays."""
        self.cache.reserve(capacity)
        self.capacity = max(capacity, self.capacity)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens of the cache; see :meth:`Cache.truncate`."""
        self.cache.truncate(length)
