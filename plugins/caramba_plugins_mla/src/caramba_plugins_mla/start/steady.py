"""A latent whose norm hardly changes from token to token, so that normalizing it changes hardly anything.

DeepSeek's attention divides the latent ``c = D x`` by its root mean square, another number for every token.  So one
component is ``M a x``, ``a`` the linear form that is nearest to 1 on calibration inputs, and ``M`` eight times as large
as the rest of the latent: the root mean square is ``M (a x)`` times a constant, to 1 in 100.  What is left is how far
``a x`` is from 1: on SmolLM2-135M 2 to 3 % of it, 5 % in the first layer.  It would be nothing with an offset in the
projection, which DeepSeek's folders have (``attention_bias``) and llama.cpp does not read.

Behind the norm that component is the same for all tokens, and probabilities sum to one: what reads it as a value is an
offset of the output.

Axes: D width of the residual stream, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import torch
from torch import Tensor

__all__ = ["Steady", "steady"]

_LARGER: Final = 8.0
"""The steady component over the length of the others: what they still add to the norm is 1 / 128 of it, on average."""

_RIDGE: Final = 1e-4
"""Of the mean diagonal of the inputs' second moment."""


@attrs.frozen(kw_only=True)
class Steady:
    """``down`` ``[r, D]``, the steady row first; ``norm`` ``[r]`` gives the other components their size back.

    ``level`` is the steady component behind the norm; ``unsteady`` how far the norm is from constant, as a share of it.
    """

    down: Tensor
    norm: Tensor
    level: float
    unsteady: float


def steady(rows: Tensor, inputs: Mapping[str, Tensor]) -> Steady:
    """The latent of ``rows`` ``[r - 1, D]`` with a steady component; ``inputs`` are of ``InputMoments``."""
    mean, second = inputs["mean"], inputs["second"]
    ridge = _RIDGE * second.diagonal().mean() * torch.eye(len(mean), dtype=second.dtype)
    form = torch.linalg.solve(second + ridge, mean)
    form = form / (form @ mean)  # 1 on average
    length = float(((rows @ second) * rows).sum().sqrt())  # of the others
    size, rank = _LARGER * length, len(rows) + 1
    root = ((size**2 + length**2) / rank) ** 0.5
    level = length / len(rows) ** 0.5
    norm = torch.full((rank,), root, dtype=rows.dtype)
    norm[0] = level * root / size
    unsteady = float((form @ second @ form - 1).clamp_min(0).sqrt())
    return Steady(down=torch.cat([size * form[None], rows]), norm=norm, level=level, unsteady=unsteady)
