"""A model that decodes: a cache of fixed capacity, and steps that are recorded once.

Axes: B batch, T tokens of this pass, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from caramba_core.components import Attention, Layer, Storage
from caramba_core.nn.cache import Cache
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.quantized import Blocks

__all__ = ["Decoder", "Recording", "join_weights", "no_steps"]

_FEW = 2
"""Tokens that recorded steps take faster than a pass does."""

_WARM_UP = 3
"""Passes before recording: they compile, choose algorithms and allocate workspaces, none of which can be recorded."""


class Decoder:
    """Sequences that grow by one token a step, in a cache with room for ``capacity`` tokens of each.

    On CUDA the first step is recorded as a CUDA graph, which is replayed for every token: the host launches next to
    nothing and waits for nothing.  ``compiled`` has torch.compile fuse what a step computes first, which takes about a
    minute.  On other devices, and where :attr:`unrecorded` names a reason, steps are ordinary passes.  Weights that are
    multiplied together are laid side by side, on a CPU those of attentions, for compiled steps all: the model's
    parameters become views.

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
        self.unrecorded = _why_not(model, self.cache)
        """Why steps are ordinary passes; empty where they are replayed."""
        if not model.head_weight.is_cuda:
            join_weights(model, Attention)  # many small products: copying the weights pays within tens of tokens
        elif self.unrecorded:
            warnings.warn(f"decode steps are not recorded: {self.unrecorded}", stacklevel=2)
        self._compiled = compiled
        self._starts: Tensor | None = None
        self._recordings: dict[int, Recording] = {}

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, starts: Tensor | None = None, chunk: int = 2048) -> Tensor:
        """Take token ids, int64 ``[B, T]``, into the cache, ``chunk`` at a time: the last one's logits ``[B, V]``.

        Sequences of unequal lengths are padded on the left; ``starts``, int64 ``[B]``, says where each begins.  May be
        called again for tokens that follow; a few of them are taken by steps where those are recorded.
        """
        assert tokens.shape[1], "a pass has at least one token"
        assert self.cache.length + tokens.shape[1] <= self.capacity, "the cache has no room for these tokens"
        if starts is not None:
            self._starts = starts
        if not self.unrecorded and self.cache.length and tokens.shape[1] <= _FEW:
            return [self.step(column) for column in tokens.unbind(1)][-1]
        for part in tokens.split(chunk, dim=1):
            hidden = self.model.hidden(part, Frame.of(part, cache=self.cache, starts=self._starts))
        return self.model.logits(hidden[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """One more token of each sequence, int64 ``[B]``: logits ``[B, V]``, which hold until the next step."""
        if self.unrecorded:
            return self.prefill(tokens[:, None])
        assert self.cache.length < self.capacity, "the cache is full"
        return self._recorded(0).replay(tokens, self._starts)

    @torch.no_grad()
    def score(self, tokens: Tensor, most: int) -> Tensor:
        """Several tokens of one sequence at once, int64 ``[T]``, ``most`` or fewer: logits behind each, ``[T, V]``.

        They hold until the next such call.  Where steps are recorded, this is a step whose rows are ``most`` tokens of
        one sequence, so that the cache must have room for as many; :meth:`truncate` takes back what is not wanted.
        """
        if self.unrecorded:
            frame = Frame.of(tokens[None], cache=self.cache, starts=self._starts)
            logits: Tensor = self.model(tokens[None], frame)[0]
            return logits
        assert self.cache.length + most <= self.capacity, "the cache has no room for these tokens"
        return self._recorded(most).replay(tokens, self._starts)

    def _recorded(self, together: int) -> Recording:
        if together not in self._recordings:
            recording = Recording(self.model, self.cache, self._starts, together, compiled=self._compiled)
            self._recordings[together] = recording
        return self._recordings[together]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens of each sequence; what is cached stays, and steps are recorded anew."""
        if capacity > self.capacity:
            self.cache.reserve(capacity)
            self.capacity, self._recordings = capacity, {}

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens of the cache; see :meth:`Cache.truncate`."""
        self.cache.truncate(length)


class Recording:
    """A step over a cache as a CUDA graph.  What is recorded reads tokens, lengths and starts from tensors.

    Its rows are one token of each sequence or, if so many are taken ``together``, tokens of one sequence.  ``ends``,
    int64 ``[B]``, are given where sequences have lengths of their own: those with the next token of each.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: Cache,
        starts: Tensor | None,
        together: int = 0,
        *,
        ends: Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.cache, self.together = model, cache, together
        device, rows = model.head_weight.device, together or cache.batch
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.places = torch.arange(rows, device=device) if together else torch.zeros_like(self.tokens[:, 0])
        self.ends = self.places + cache.length + 1 if ends is None else ends.clone()
        self.starts = None
        if all(config.takes_starts for config in _attentions(model).values()):
            self.starts = torch.zeros_like(self.ends)
            if starts is not None:
                self.starts.copy_(starts)
        step = self.run
        if compiled:
            join_weights(model, Layer)
            # products with one row become reductions that fuse with what surrounds them
            options: dict[str, str | int | bool | Callable[..., Any]] = (
                {"coordinate_descent_tuning": True} if rows == 1 else {}
            )
            step = torch.compile(self.run, fullgraph=True, dynamic=False, options=options or None)
        kept = _overwritten(cache)
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step()
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step()
        for tensor, before in kept:
            tensor.copy_(before)

    def run(self) -> Tensor:
        """One token of each sequence, all of it on the device."""
        frame = Frame.step(self.cache, self.ends, starts=self.starts)
        return self.model.logits(self.model.hidden(self.tokens, frame)[:, -1])

    def replay(self, tokens: Tensor, starts: Tensor | None) -> Tensor:
        """Logits ``[B, V]`` of tokens ``[B]`` that follow what is cached; rows without a token are left out."""
        torch.add(self.places, self.cache.length + 1, out=self.ends)
        logits = self.replay_at(tokens, self.ends, starts)
        self.cache.advance(len(tokens) if self.together else 1)
        return logits

    def replay_at(self, tokens: Tensor, ends: Tensor, starts: Tensor | None) -> Tensor:
        """The same where each token is the last of ``ends`` ``[B]``; the length of the cache stays."""
        if ends is not self.ends:
            self.ends.copy_(ends)
        if self.starts is not None and starts is not None:
            self.starts.copy_(starts)
        self.tokens[: len(tokens), 0] = tokens
        self.graph.replay()
        return self.logits[: len(tokens)]


def join_weights(model: LanguageModel, kind: type[Layer]) -> None:
    """Lay weights side by side that layers of a kind multiply together."""
    for module in model.modules():
        if isinstance(module, ComponentModule) and isinstance(module.config, kind):
            module.join(*module.joint_weights())


def _overwritten(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """What steps before the recorded one would change for good, with copies: states, and rings that are full.

    In all other tensors they write where the next token goes.
    """
    return [
        (tensor, tensor.clone())
        for layer in cache.layers()
        for name, tensor in layer.tensors.items()
        if not layer.spec[name.split(".")[0]].per_token or layer.spec[name.split(".")[0]].window is not None
    ]


def _attentions(model: LanguageModel) -> dict[str, Attention]:
    configs = {name: node.config for name, node in model.graph.attentions().items()}
    return {name: config for name, config in configs.items() if isinstance(config, Attention)}


def _why_not(model: LanguageModel, cache: Cache) -> str:
    device = model.head_weight.device.type
    return f"the model is on {device}" if device != "cuda" else no_steps(model, cache)


def no_steps(model: LanguageModel, cache: Cache) -> str:
    """Why a model takes no decode steps (:meth:`Frame.step`) over a cache; empty where it does."""
    for name, config in _attentions(model).items():
        if not config.takes_steps:
            return f"{name} ({type(config).__name__}) takes no decode steps (takes_steps)"
    for layer in cache.layers():
        for storage in (layer.entry(name).storage for name, entry in layer.spec.items() if entry.per_token):
            if storage is not None and not isinstance(storage, Blocks):
                return f"caches stored as {type(storage).__name__} have no kernel"
    return ""
