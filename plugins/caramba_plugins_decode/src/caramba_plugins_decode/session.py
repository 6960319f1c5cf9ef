"""One growing text: what its cache holds is kept from answer to answer, and only new tokens are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.generation import continuations
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.sampling import Sampler
from torch import Tensor

from caramba_core.components import Storage
from caramba_core.graph import Graph
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_decode.source import TextModel

__all__ = ["CachedText", "Session", "not_taken_back"]


def not_taken_back(graph: Graph, length: float) -> str | None:
    """The first attention whose cache, once it has held ``length`` tokens, cannot give some of them back.

    Those are states, and windows that slide; :meth:`Cache.truncate` says why.
    """
    for name, node in graph.attentions().items():
        for entry in node.config.cache_spec(node.width_in).values():  # type: ignore[attr-defined]
            if not entry.per_token or (entry.window is not None and length > entry.window):
                return f"{name} ({type(node.config).__name__})"
    return None


class CachedText:
    """A model, and the tokens of one text that its cache holds."""

    def __init__(self, model: LanguageModel, storage: Storage | None) -> None:
        self.model = model
        self.storage = storage
        self.held: list[int] = []
        self.prefilled = 0
        """Tokens that went through :meth:`prefill` in all."""

        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """The model with its cache, once something was prefilled."""
        assert self._decoder is not None, "nothing was prefilled"
        return self._decoder

    @property
    def bytes(self) -> int:
        """Bytes of the cache as allocated."""
        return 0 if self._decoder is None else self._decoder.cache.bytes

    def ids(self, tokens: Sequence[int]) -> Tensor:
        """Tokens as a batch of one on the model's device: int64 ``[1, T]``."""
        return torch.tensor([tokens], device=self.model.head_weight.device)

    def prefill(self, tokens: Sequence[int], room: int) -> Tensor:
        """The logits ``[1, V]`` behind ``tokens``; there is room for so many more.

        Tokens that the cache holds already are not computed again.
        """
        tokens, needed = list(tokens), len(tokens) + room
        if self._decoder is None:
            self._decoder = Decoder(self.model, batch=1, capacity=needed, storage=self.storage)
        elif needed > self._decoder.capacity:
            self._decoder.grow(max(needed, 2 * self._decoder.capacity))
        self.keep(min(_common(self.held, tokens), len(tokens) - 1))
        new = tokens[len(self.held) :]
        logits = self._decoder.prefill(self.ids(new))
        self.prefilled += len(new)
        self.held = tokens
        return logits

    def score(self, tokens: Sequence[int], most: int) -> Tensor:
        """Take more tokens into the cache, ``most`` or fewer: the logits behind each of them, ``[T, V]``."""
        logits = self.decoder.score(self.ids(tokens)[0], most)
        self.held += tokens
        return logits

    def note(self, text: Sequence[int]) -> None:
        """Say what the text is, whose beginning the cache now holds."""
        self.held = list(text[: self.decoder.cache.length])

    def keep(self, length: int) -> None:
        """Keep the first ``length`` tokens, or none where the cache cannot take the others back."""
        cache = self.decoder.cache
        if length < cache.length and not_taken_back(self.model.graph, cache.length) is not None:
            length = 0
        if length != cache.length:
            self.decoder.truncate(length)
        self.held = self.held[:length]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens at the start of two texts are the same."""
    if other[: len(one)] == one:
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Session:
    """Answers of one model to texts that grow, or begin anew."""

    def __init__(self, model: TextModel) -> None:
        self.text = CachedText(model.model, model.storage)

    @property
    def bytes(self) -> int:
        """Bytes of the cache as allocated."""
        return self.text.bytes

    def tokens(self, prompt: Sequence[int], count: int, sampling: Sampling, seed: int) -> Iterator[int]:
        """At most ``count`` tokens that follow a prompt; a step is computed when its token is asked for."""
        logits = self.text.prefill(prompt, count)
        ids = list(prompt)
        sampler = Sampler(sampling, [seed], self.text.ids(ids), self.text.model.graph.vocab_size)
        for new in continuations(self.text.decoder, logits, count, sampler):
            self.text.note(ids)
            ids.append(int(new))
            yield ids[-1]
