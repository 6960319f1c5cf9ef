"""Starting a sliding window from any multi-head or grouped-query attention: the weights as they are.

Nothing is lost while a text is not longer than ``sinks + window``; beyond, each token loses what it attended to
outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from caramba_plugins_upcycle.transplant import Started, Transplant

from caramba_core.component import Attention, component
from caramba_core.errors import InvalidValue
from caramba_plugins_sliding_window.attention import SlidingWindowAttention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GQAToSlidingWindow"]


@component
class GQAToSlidingWindow(Transplant):
    """The source's projections, biases and norms; offsets that the source lacks start at zero."""

    target: ClassVar[type[Attention]] = SlidingWindowAttention

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Raise :class:`InvalidValue` with the reason where this pair cannot be converted."""
        assert isinstance(target, SlidingWindowAttention)
        for field in ("n_heads", "n_kv_heads", "head_dim", "rope", "qk_norm_eps"):
            ours, theirs = getattr(target, field), getattr(source, field, None)
            if ours != theirs:
                raise InvalidValue(field, f"{ours} differs from the source's {theirs}", expected=str(theirs))
        multiplier = getattr(source, "multiplier", target.multiplier)
        if target.multiplier != multiplier:
            raise InvalidValue("scale", f"{target.multiplier} differs from the source's", expected=str(multiplier))
        window = getattr(source, "window", None)
        if window is not None and target.window > window:
            raise InvalidValue(
                "window", f"{target.window} is more than the source's", expected=f"at most {window} tokens"
            )
        declared = target.weights(width)
        for name in source.weights(width):
            if name not in declared:
                raise InvalidValue(None, f"the source's {name} has no place", hint=_option_for(name))

    def start(
        self,
        source: Attention,
        weights: Mapping[str, Tensor],
        target: Attention,
        width: int,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> Started:
        """Every weight of the target."""
        import torch

        made = {
            name: weights[name] if name in weights else torch.zeros(weight.shape)
            for name, weight in target.weights(width).items()
        }
        return Started(weights=made)


def _option_for(weight: str) -> str:
    return "set o_bias: true" if weight == "o_bias" else "set qkv_bias: true"
