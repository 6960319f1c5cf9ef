"""What a layer's attention makes of its rotations, and the constants that stand in for them where a pair is moved."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.rotary import mean_rotation
from torch import Tensor

from caramba_core.components import Attention
from caramba_plugins_dba.start.selection import folded, importance, stand_in

__all__ = ["Rotation"]

Moments = Mapping[str, Mapping[str, Tensor]]


@attrs.frozen(kw_only=True, eq=False)
class Rotation:
    """The mean ``rho`` of each rotation and the constant in its place, both complex ``[H, P]``.

    ``scaling`` is what the source's rotary embedding multiplies a query's product with a key with (yarn), which a
    moved pair has to keep.
    """

    rho: Tensor
    constant: Tensor
    folds: bool
    scaling: float

    @classmethod
    def of(cls, source: Attention, moments: Moments, fold: str) -> Rotation:
        """From the source's attention by distance; without a rotary embedding nothing turns."""
        rope: Rope | None = getattr(source, "rope", None)
        head_dim: int = getattr(source, "head_dim")  # noqa: B009
        frequencies = [0.0] * (head_dim // 2) if rope is None else rope.frequencies(head_dim)
        rho = mean_rotation(moments["distance"]["attention"], torch.tensor(frequencies, dtype=torch.float64))
        scaling = 1.0 if rope is None else rope.attention_scaling**2
        return cls(rho=rho, constant=stand_in(rho, fold), folds=fold != "none", scaling=scaling)

    def costs(self, moments: Moments, selection: str) -> Tensor:
        """What each pair of each key/value head costs where it is moved: ``[G, P]``."""
        return importance(
            moments["query"]["second"], moments["key"]["second"], self.rho, by=selection, constant=self.constant
        )

    def folded(self, queries: Tensor) -> Tensor:
        """Queries ``[H d, *]`` or ``[H, d, *]`` with the constants folded in: ``[H, d, *]``."""
        heads, pairs = self.rho.shape
        rows = queries if len(queries) == heads else queries.unflatten(0, (heads, 2 * pairs))
        return folded(rows, self.constant) if self.folds else rows

    def folded_second(self, second: Tensor) -> Tensor:
        """The second moments ``[H, d, d]`` of such queries."""
        return self.folded(self.folded(second).mT) if self.folds else second
