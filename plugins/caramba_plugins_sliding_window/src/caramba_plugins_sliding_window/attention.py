"""The config of sliding-window attention with sink tokens.

Token ``t`` sees the first ``sinks`` tokens of the text and the last ``window``, itself included.  Heads park attention
that they have no use for on the first tokens; a window without them falls apart as soon as it slides (StreamingLLM,
arXiv 2309.17453).  The cache holds ``sinks + window`` tokens however long the text grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from caramba_plugins_standard.gqa import GroupedAttention

from caramba_core.components import CacheEntry, Cost, Shape, component, option
from caramba_core.errors import InvalidValue

__all__ = ["SlidingWindowAttention"]


@component
class SlidingWindowAttention(GroupedAttention):
    """Grouped-query softmax attention to the first ``sinks`` tokens and the last ``window``.

    ``sink_positions`` says how far away the sinks seem once they lie outside the window.  ``text``: as far as they are;
    one fused call of the plain width.  ``cache``: never farther than the cache is long, as in StreamingLLM, so that the
    distance stays one that training has seen, in a text without end; queries and keys of the fused call are twice as
    wide for sequences longer than the cache.
    """

    builds: ClassVar[str] = "caramba_plugins_sliding_window.module:SlidingWindowModule"
    takes_documents: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True

    window: int = option(help="last tokens that a token sees, itself included", unit="tokens", minimum=1)
    sinks: int = option(default=4, help="first tokens of the text that every token sees", unit="tokens", minimum=0)
    sink_positions: Literal["text", "cache"] = option(
        default="text",
        help="distance of the sinks: true, or at most the length of the cache",
        choices=("text", "cache"),
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.rope is not None and self.rope.scaling == "dynamic":
            raise InvalidValue(
                "rope", "dynamic scaling turns cached keys anew when the text grows, which a bounded cache cannot do"
            )

    @property
    def held(self) -> int:
        """Tokens in a full cache: as many as one token sees."""
        return self.sinks + self.window

    @property
    def near_sinks(self) -> bool:
        """Whether queries turn differently for the sinks."""
        return self.sink_positions == "cache" and self.sinks > 0 and self.rope is not None

    def cost(self, width: int, shape: Shape) -> Cost:
        """Sequences longer than the cache are counted with their mask in full, at the width of the fused call."""
        doubled = self.near_sinks and shape.tokens == shape.context > self.held
        return self.softmax_cost(width, shape, self.held, fused=2 if doubled else 1)

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Rotated ``key`` and ``value``, ``[G, d]`` a token each, for ``sinks + window`` tokens."""
        entry = CacheEntry(shape=(self.n_kv_heads, self.head_dim), window=self.held, sinks=self.sinks)
        return {"key": entry, "value": entry}
