"""Starting linear attention from any multi-head or grouped-query attention, without a gradient step.

Near tokens are read as the source reads them, so nothing is lost while a text is not longer than ``sinks + window``.
Far tokens are sorted into slots by their keys, fitted to the source's own far attention on calibration sequences
(:mod:`caramba_plugins_linear.start`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from caramba_plugins_standard.gqa import GroupedAttention
from caramba_plugins_upcycle.transplant import CacheBudget, Calibrated, Carrying, Moment, Started

from caramba_core.components import Attention, component, option
from caramba_core.errors import InputError, InvalidValue
from caramba_plugins_linear.attention import LinearAttention

__all__ = ["GQAToLinear", "SequenceMoments"]

_STATE_SHARE: Final = 0.125
_SINKS: Final = 4


@component
class SequenceMoments(Moment):
    """``query`` ``[N, H, T, d]`` and ``key`` ``[N, G, T, d]`` of the first sequences, before rotation, in float32.

    Which far tokens a query attends to is a question about pairs, which no sum over tokens answers.
    """

    builds: ClassVar[str] = "caramba_plugins_linear.collector:SequenceCollector"

    count: int = option(default=8, help="sequences that are kept", minimum=1)


@component
class GQAToLinear(Carrying):
    """The source's projections and biases, slots by k-means, offsets from the source's attention."""

    target: ClassVar[type[Attention]] = LinearAttention
    same: ClassVar[tuple[str, ...]] = (
        *("n_heads", "n_kv_heads", "head_dim", "rope", "scale"),
        *("qk_norm_eps", "qk_norm_span", "qk_norm_offset"),
    )
    without: ClassVar[tuple[str, ...]] = ("window",)

    def propose(self, source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any]:
        """An eighth of the bytes for the state, whose values take four, the rest for tokens that are read exactly."""
        assert isinstance(source, GroupedAttention)
        per_token = 2 * source.n_kv_heads * source.head_dim
        room = budget.share * budget.context * per_token  # in values of two bytes, as the slots are below
        slot = 2 * source.n_kv_heads * (source.head_dim + 1)
        features = max(1, int(_STATE_SHARE * room / slot))
        held = int((room - features * slot) / per_token)
        if held < 1:
            raise InvalidValue(None, f"a slot of the state leaves no room for a token of {budget.context}")
        sinks = min(_SINKS, held // 2)
        fields: dict[str, Any] = {"features": features, "window": held - sinks, "sinks": sinks}
        return {**fields, **({"qkv_bias": True} if source.qkv_bias else {}), "o_bias": True}

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """Some sequences as they are."""
        return {"sequences": SequenceMoments()}

    def start(self, source: Calibrated, target: Attention) -> Started:
        """Every weight of the target, the share of attention that is far, and how far keys lie from their slots.

        Raises :class:`InputError` where calibration sequences are too short to have far tokens.
        """
        from caramba_plugins_linear.start.maps import fit

        assert isinstance(target, LinearAttention)
        sequences = source.moments["sequences"]
        tokens = sequences["key"].shape[2]
        if tokens <= target.held:
            raise InputError(
                f"calibration sequences of {tokens} tokens have none outside of sinks + window ({target.held})",
                expected=f"sequences of more than {target.held} tokens, better twice as many",
                hint="raise start.max_context, or lower the attention's window",
            )
        carried = super().start(source, target)
        maps = fit(target, sequences["query"], sequences["key"])
        return Started(weights={**carried.weights, **maps.weights}, report=maps.report)
