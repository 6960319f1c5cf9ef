"""Windows of tokens in a seeded order; the whole data state is one counter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.run.context import RunContext
from caramba_plugins_standard.marks import MarkedTokens, is_marked
from caramba_plugins_standard.mixtures import MixedTokens
from caramba_plugins_standard.several_texts import SeveralTexts
from caramba_plugins_standard.training.orders import Interleaving, permuted

__all__ = ["Windows", "windows_of"]

_DRAWN = 1 << 20
"""Windows whose order is drawn at once (8 MiB); that of more is computed one by one."""

_ROUNDS = 4


class Windows:
    """Windows of ``context`` tokens (and the one after), each seen once an epoch in an order drawn from ``seed``.

    Those of a mixture's parts are interleaved by their weights, and each part has epochs and orders of its own.

    Sample ``n`` is a function of the seed and ``n`` alone, found in constant time, so a run that stopped goes on with
    the same tokens.  ``count`` samples come before a window comes again.
    """

    def __init__(self, tokens: Tokens, *, context: int, seed: int) -> None:
        if isinstance(tokens, SeveralTexts):
            raise InputError(
                "data.train holds texts to measure on (type: texts)", hint="a mixture gives each of them a weight"
            )
        self.tokens = tokens
        self.context = context
        self.seed = seed
        sources, weights = (tokens.sources, tokens.weights) if isinstance(tokens, MixedTokens) else ((tokens,), (1.0,))
        self._interleaving = Interleaving(weights, seed)
        self._parts = [
            _Part(part, context, (seed, number) if len(sources) > 1 else (seed,)) for number, part in enumerate(sources)
        ]
        self.marked = is_marked(tokens)
        """Whether :meth:`words` have marks."""

        total = sum(weights)
        self.count = min(int(part.count * (total / weight)) for part, weight in zip(self._parts, weights, strict=True))

    def sample(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Token ids of sample ``index``: int64 ``[context + 1]``."""
        tokens, start = self._place(index)
        return tokens.read(start, start + self.context + 1)

    def batch(self, first: int, size: int) -> Tensor:
        """Samples ``first`` to ``first + size - 1``: int64 ``[size, context + 1]`` on the CPU."""
        return torch.from_numpy(np.stack([self.sample(index) for index in range(first, first + size)]))

    def words(self, first: int, size: int) -> Tensor:
        """The same as :meth:`batch`, with the :mod:`~caramba_plugins_standard.marks` of each token."""
        found = []
        for index in range(first, first + size):
            tokens, start = self._place(index)
            read = tokens.marked if isinstance(tokens, MarkedTokens) else tokens.read
            found.append(read(start, start + self.context + 1))
        return torch.from_numpy(np.stack(found))

    def _place(self, index: int) -> tuple[Tokens, int]:
        """The source of a sample, and where its window begins there."""
        number, place = self._interleaving.place(index)
        part = self._parts[number]
        return part.tokens, part.start(place)


class _Part:
    """The windows of one source."""

    def __init__(self, tokens: Tokens, context: int, seed: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.context = context
        self.seed = seed
        self.count = (len(tokens.ids) - 1) // context
        if self.count < 1:
            raise InputError(
                f"{tokens.origin} has {len(tokens.ids)} tokens, too few for one window",
                expected=f"at least {context + 1} tokens",
                hint="use more text, or a shorter context",
            )
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._keys: list[int] = []

    def start(self, index: int) -> int:
        """Where the window of its sample ``index`` begins."""
        epoch, place = divmod(index, self.count)
        if epoch != self._epoch:
            self._epoch, seed = epoch, [*self.seed, epoch]
            if self.count <= _DRAWN:
                self._order = np.random.default_rng(seed).permutation(self.count)
            else:
                self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64).tolist()
        window = permuted(place, self.count, self._keys) if self._keys else int(self._order[place])
        return window * self.context


def windows_of(context: RunContext, length: int) -> Windows:
    """Windows of ``length`` tokens of a run's ``data.train``, in an order that depends on the run's seed alone."""
    return Windows(context.shared.tokens("train"), context=length, seed=context.seed)
