"""Windows of tokens in a seeded order; the whole data state is one counter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.run.context import RunContext

__all__ = ["Windows", "windows_of"]


class Windows:
    """Windows of ``context`` tokens (and the one after), each seen once an epoch in an order drawn from ``seed``.

    Sample ``n`` is a function of the seed and ``n`` alone, so a run that stopped goes on with the same tokens.
    """

    def __init__(self, tokens: Tokens, *, context: int, seed: int) -> None:
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

    def sample(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Token ids of sample ``index``: int64 ``[context + 1]``."""
        epoch, place = divmod(index, self.count)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        start = int(self._order[place]) * self.context
        return self.tokens.read(start, start + self.context + 1)

    def batch(self, first: int, size: int) -> Tensor:
        """Samples ``first`` to ``first + size - 1``: int64 ``[size, context + 1]`` on the CPU."""
        return torch.from_numpy(np.stack([self.sample(index) for index in range(first, first + size)]))


def windows_of(context: RunContext, length: int) -> Windows:
    """Windows of ``length`` tokens of a run's ``data.train``, in an order that depends on the run's seed alone."""
    return Windows(context.shared.tokens("train"), context=length, seed=context.seed)
