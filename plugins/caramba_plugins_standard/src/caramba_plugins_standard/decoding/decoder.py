"""A model that decodes: a cache of fixed capacity, and steps that are recorded once.

Axes: B batch, T tokens of this pass, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule
from caramba_core.storage import Storage
from caramba_plugins_standard.quantized import Blocks

__all__ = ["Decoder"]

_WARM_UP = 3
"""Passes before recording: they compile, choose algorithms and allocate workspaces, none of which can be recorded."""


class Decoder:
    """Sequences that grow by one token a step, in a cache with room for ``capacity`` tokens of each.

    On CUDA a step is recorded as a CUDA graph when the decoder is made, and replayed for every token: the host launches
    nothing else and waits for nothing.  ``compiled`` has torch.compile fuse what the step computes first, which takes
    about a minute, and lays weights side by side that are multiplied together: the model's parameters become views, so
    that a model which is being trained must not be given.  On other devices, and where :attr:`unrecorded` names a reason, steps run as ordinary passes.

    Tokens go in from the device and logits stay there: reading them is the caller's decision, and the only
    synchronization.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        batch: int,
        capacity: int,
        storage: Storage | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.capacity = capacity
        self.cache = model.new_cache(batch, capacity=capacity, storage=storage)
        self._starts: Tensor | None = None
        weight = model.head_weight
        self.unrecorded = _why_not(model, storage) if weight.is_cuda else f"the model is on {weight.device.type}"
        """Why steps are ordinary passes; empty where they are replayed."""
        self._compiled = compiled
        if not self.unrecorded:
            self._record()

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, starts: Tensor | None = None, chunk: int = 2048) -> Tensor:
        """Take token ids, int64 ``[B, T]``, into the cache, ``chunk`` at a time: the last one's logits ``[B, V]``.

        Sequences of unequal lengths are padded on the left; ``starts``, int64 ``[B]``, says where each begins.  May be
        called again for tokens that follow.
        """
        assert self.cache.length + tokens.shape[1] <= self.capacity, "the cache has no room for these tokens"
        if starts is not None:
            self._starts = starts
        hidden = None
        for part in tokens.split(chunk, dim=1):
            hidden = self.model.hidden(part, Frame.of(part, cache=self.cache, starts=self._starts))[:, -1]
        assert hidden is not None, "a prompt has at least one token"
        if not self.unrecorded:
            self._step_ends.fill_(self.cache.length + 1)
            self._step_starts.copy_(torch.zeros_like(self._step_starts) if self._starts is None else self._starts)
        return self.model.logits(hidden)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """One more token of each sequence, int64 ``[B]``: logits ``[B, V]``, which hold until the next step."""
        assert self.cache.length < self.capacity, "the cache is full"
        if self.unrecorded:
            new = tokens[:, None]
            hidden = self.model.hidden(new, Frame.of(new, cache=self.cache, starts=self._starts))
            return self.model.logits(hidden[:, -1])
        self._tokens.copy_(tokens[:, None])
        self._graph.replay()
        self.cache.advance(1)
        return self._logits

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens of the cache; see :meth:`Cache.truncate`."""
        self.cache.truncate(length)
        if not self.unrecorded:
            self._step_ends.fill_(length + 1)

    def _record(self) -> None:
        """Record a step over the empty cache.  What it leaves there is overwritten, or cleared."""
        device, batch = self.model.head_weight.device, self.cache.batch
        self._tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._step_ends = torch.ones(batch, dtype=torch.int64, device=device)
        self._step_starts = torch.zeros_like(self._step_ends)
        step = self._pass
        if self._compiled:
            for module in self.model.modules():
                if isinstance(module, ComponentModule) and (names := module.joint_weights()):
                    module.join(*names)
            # products with one row become reductions that fuse with what surrounds them
            options = {"coordinate_descent_tuning": True} if batch == 1 else None
            step = torch.compile(self._pass, fullgraph=True, dynamic=False, options=options)
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(_WARM_UP):
                step()
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._logits = step()
        self.cache.truncate(0)

    def _pass(self) -> Tensor:
        """One token of each sequence, all of it on the device; the tokens' number grows in the same go."""
        starts = self._step_starts if _takes_starts(self.model) else None
        frame = Frame.step(self.cache, self._step_ends, starts=starts)
        logits = self.model.logits(self.model.hidden(self._tokens, frame)[:, -1])
        self._step_ends.add_(1)
        return logits


def _attentions(model: LanguageModel) -> dict[str, Attention]:
    configs = {name: node.config for name, node in model.graph.attentions().items()}
    return {name: config for name, config in configs.items() if isinstance(config, Attention)}


def _takes_starts(model: LanguageModel) -> bool:
    return all(config.takes_starts for config in _attentions(model).values())


def _why_not(model: LanguageModel, storage: Storage | None) -> str:
    for name, config in _attentions(model).items():
        if not config.takes_steps:
            return f"{name} ({type(config).__name__}) takes no decode steps (takes_steps)"
    if storage is not None and not isinstance(storage, Blocks):
        return f"caches stored as {type(storage).__name__} have no kernel"
    return ""
