"""Starting a sliding window from any multi-head or grouped-query attention: the weights as they are.

Nothing is lost while a text is not longer than ``sinks + window``; beyond, each token loses what it attended to
outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from caramba_plugins_standard.gqa import GroupedAttention
from caramba_plugins_upcycle.transplant import CacheBudget, Carrying

from caramba_core.components import Attention, component
from caramba_core.errors import InvalidValue
from caramba_plugins_sliding_window.attention import SlidingWindowAttention

__all__ = ["GQAToSlidingWindow"]

_SINKS: Final = 4


@component
class GQAToSlidingWindow(Carrying):
    """The source's projections, biases and norms; offsets that the source lacks start at zero."""

    target: ClassVar[type[Attention]] = SlidingWindowAttention
    same: ClassVar[tuple[str, ...]] = (
        *("n_heads", "n_kv_heads", "head_dim", "rope", "scale"),
        *("qk_norm_eps", "qk_norm_span", "qk_norm_offset"),
    )

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """No wider window than the source's."""
        super().check(source, target, width)
        assert isinstance(target, SlidingWindowAttention)
        window = getattr(source, "window", None)
        if window is not None and target.window > window:
            raise InvalidValue(
                "window", f"{target.window} is more than the source's", expected=f"at most {window} tokens"
            )

    def propose(self, source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any]:
        """As many tokens as the share is of those that the source sees, the first four of the text among them."""
        assert isinstance(source, GroupedAttention)
        window = getattr(source, "window", None)
        seen = budget.context if window is None else min(window, budget.context)
        held = int(budget.share * seen)
        if held < 1:
            raise InvalidValue(None, f"the share of {seen} tokens is less than one")
        sinks = min(_SINKS, held // 2)
        fields: dict[str, Any] = {"window": held - sinks, "sinks": sinks}
        return {**fields, **({"qkv_bias": True} if source.qkv_bias else {}), "o_bias": True}
