"""Starting linear attention from any multi-head or grouped-query attention, without a gradient step.

Near tokens are read as the source reads them, so nothing is lost while a text is not longer than ``sinks + window``.
Far tokens are sorted into slots by their keys, fitted to the source's own far attention on calibration sequences
(:mod:`caramba_plugins_linear.start`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from caramba_plugins_upcycle.transplant import Moment, Started, Transplant

from caramba_core.component import Attention, component
from caramba_core.errors import InputError, InvalidValue
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.moments import SequenceMoments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GQAToLinear"]


@component
class GQAToLinear(Transplant):
    """The source's projections and biases, slots by k-means, offsets from the source's attention."""

    target: ClassVar[type[Attention]] = LinearAttention

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Raise :class:`InvalidValue` with the reason where this pair cannot be converted."""
        assert isinstance(target, LinearAttention)
        for field in ("n_heads", "n_kv_heads", "head_dim", "rope"):
            ours, theirs = getattr(target, field), getattr(source, field, None)
            if ours != theirs:
                raise InvalidValue(field, f"{ours} differs from the source's {theirs}", expected=str(theirs))
        for field in ("qk_norm_eps", "window"):
            if getattr(source, field, None) is not None:
                raise InvalidValue(None, f"the source has {field}, for which there is no start of linear attention")
        multiplier = getattr(source, "multiplier", target.multiplier)
        if target.multiplier != multiplier:
            raise InvalidValue("scale", f"{target.multiplier} differs from the source's", expected=str(multiplier))
        declared = target.weights(width)
        for name in source.weights(width):
            if name not in declared:
                option = "o_bias" if name == "o_bias" else "qkv_bias"
                raise InvalidValue(option, f"the source's {name} has no place", expected="true")

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """Some sequences as they are."""
        return {"sequences": SequenceMoments()}

    def start(
        self,
        source: Attention,
        weights: Mapping[str, Tensor],
        target: Attention,
        width: int,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> Started:
        """Every weight of the target, the share of attention that is far, and how far keys lie from their slots.

        Raises :class:`InputError` where calibration sequences are too short to have far tokens.
        """
        from caramba_plugins_linear.start import start

        assert isinstance(target, LinearAttention)
        tokens = moments["sequences"]["key"].shape[2]
        if tokens <= target.held:
            raise InputError(
                f"calibration sequences of {tokens} tokens have none outside of sinks + window ({target.held})",
                expected=f"sequences of more than {target.held} tokens, better twice as many",
                hint="raise start.max_context, or lower the attention's window",
            )
        return start(weights, target, width, moments["sequences"])
