"""A model that decodes texts which begin and end apart: a row of the cache that is done takes the next text.

Axes: B rows, K texts that begin together, T tokens of the longest of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caramba_core.components import Attention, Storage
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.decoding.decoder import Decoder, Recording, join_weights, no_steps

__all__ = ["Rows", "padded"]


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts of any lengths as one tensor, int64 ``[B, T]``, padded on the left.

    With it, where each begins, int64 ``[B]``; ``None`` where all are equally long.
    """
    assert prompts and all(prompts), "a prompt has at least one token"
    longest = max(map(len, prompts))
    starts = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)]
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device) if any(starts) else None


class Rows:
    """Rows of a cache with room for ``capacity`` tokens each, which grows; each is as long as the text that it holds.

    :meth:`fill` lets texts begin in rows, :meth:`step` adds a token to each row, :meth:`leave` says which are done.  On
    CUDA the step is recorded once for each capacity, whatever texts come: beside their tokens they cost nothing.
    :attr:`refused` says why a model cannot be asked to (its attentions take no decode steps); empty where it can.
    """

    def __init__(self, model: LanguageModel, rows: int, *, capacity: int, storage: Storage | None = None) -> None:
        self.model = model
        self.capacity = _rounded(capacity)
        self.cache = model.new_cache(rows, capacity=self.capacity, storage=storage)
        self.refused = no_steps(model, self.cache)
        self._storage = storage
        device = model.head_weight.device
        if device.type == "cpu":
            join_weights(model, Attention)
        self._ends = torch.ones(rows, dtype=torch.int64, device=device)
        self._grow = torch.zeros_like(self._ends)  # one where a text is, so that the others stay short
        attentions = (node.config for node in model.graph.attentions().values())
        self._unequal = all(isinstance(config, Attention) and config.takes_starts for config in attentions)
        self._starts = torch.zeros_like(self._ends) if self._unequal else None
        self._recording: Recording | None = None

    @torch.no_grad()
    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """Let prompts begin in these rows, with room for so many more tokens: the logits behind each, ``[K, V]``."""
        assert not self.refused, self.refused
        together: dict[int, list[int]] = {}
        for at, prompt in enumerate(prompts):  # in one pass, or a pass for each length where they must be equal
            together.setdefault(0 if self._unequal else len(prompt), []).append(at)
        logits = [
            self._fill([rows[at] for at in part], [prompts[at] for at in part], room) for part in together.values()
        ]
        order = torch.tensor([at for part in together.values() for at in part], device=self._ends.device)
        return torch.cat(logits)[order.argsort()]

    def _fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        tokens, starts = padded(prompts, self._ends.device)
        self._reserve(tokens.shape[1] + room)
        prefill = Decoder(self.model, batch=len(rows), capacity=tokens.shape[1], storage=self._storage)
        logits = prefill.prefill(tokens, starts=starts)
        index = torch.tensor(rows, device=self._ends.device)
        for ours, theirs in zip(self.cache.layers(), prefill.cache.layers(), strict=True):
            for name, new in theirs.tensors.items():
                held = ours.tensors[name]
                if ours.spec[name.split(".")[0]].per_token:
                    held = held[:, : new.shape[1]]
                held[index] = new
        self._ends[index] = tokens.shape[1]
        self._grow[index] = 1
        if self._starts is not None:
            self._starts[index] = 0 if starts is None else starts
        return logits

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """One more token of each row, int64 ``[B]``: logits ``[B, V]``, which hold until the next step.

        What rows without a text are given and give says nothing.
        """
        self._ends += self._grow
        if not self._ends.is_cuda:
            frame = Frame.step(self.cache, self._ends, starts=self._starts)
            return self.model.logits(self.model.hidden(tokens[:, None], frame)[:, -1])
        if self._recording is None:
            self._recording = Recording(self.model, self.cache, self._starts, ends=self._ends)
        return self._recording.replay_at(tokens, self._ends, self._starts)

    def leave(self, rows: Sequence[int]) -> None:
        """Say that the texts in these rows are done."""
        index = torch.tensor(rows, device=self._ends.device)
        self._ends[index] = 1
        self._grow[index] = 0
        if self._starts is not None:
            self._starts[index] = 0

    def _reserve(self, capacity: int) -> None:
        if capacity > self.capacity:
            self.capacity, self._recording = _rounded(capacity), None
            self.cache.reserve(self.capacity)


def _rounded(capacity: int) -> int:
    """The next power of two, so that few steps are recorded however long texts become."""
    return 1 << max(capacity - 1, 1).bit_length()
