"""Starting a sliding window from any multi-head or grouped-query attention: the weights as they are.

Nothing is lost while a text is not longer than ``sinks + window``; beyond, each token loses what it attended to
outside.
"""

from __future__ import annotations

from typing import ClassVar

from caramba_plugins_upcycle.transplant import Carrying

from caramba_core.components import Attention, component
from caramba_core.errors import InvalidValue
from caramba_plugins_sliding_window.attention import SlidingWindowAttention

__all__ = ["GQAToSlidingWindow"]


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
