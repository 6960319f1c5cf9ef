"""Starting MLA from any rotary multi-head or grouped-query attention, without a gradient step.

The mathematics stands, a step a file, in :mod:`caramba_plugins_mla.start`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from caramba_plugins_upcycle.moments import DistanceMoments, KeyMoments, QueryMoments
from caramba_plugins_upcycle.transplant import Moment, Started, Transplant

from caramba_core.component import Attention, component
from caramba_core.errors import InvalidValue
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_mla.moments import KeyValueMoments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GQAToMLA"]


@component
class GQAToMLA(Transplant):
    """A rotary key shared by principal components, and one latent for the rest of the keys and for the values.

    At full sizes (``rope_dim`` and ``rank`` as wide as all keys, and keys and values) nothing is lost.  Below, two
    things are: components that lose their rotation see each token as if it stood where the query stands, and the latent
    leaves out what scores and outputs read least.
    """

    target: ClassVar[type[Attention]] = MultiHeadLatentAttention

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Raise :class:`InvalidValue` with the reason where this pair cannot be converted."""
        assert isinstance(target, MultiHeadLatentAttention)
        for field in ("n_heads", "n_kv_heads", "head_dim"):
            ours, theirs = getattr(target, field), getattr(source, field)
            if ours != theirs:
                raise InvalidValue(field, f"{ours} differs from the source's {theirs}", expected=str(theirs))
        for field in ("qk_norm_eps", "window"):
            if getattr(source, field, None) is not None:
                raise InvalidValue(None, f"the source has {field}, for which there is no start of MLA")
        if target.latent_norm_eps is not None:
            raise InvalidValue("latent_norm_eps", "the source's keys and values are not normalized", expected="none")
        rope = getattr(source, "rope", None)
        if target.rope != rope and (target.pairs or rope is not None):
            raise InvalidValue("rope", f"{target.rope} differs from the source's", expected=str(rope))
        room = target.n_kv_heads * target.head_dim
        if target.rope_dim > room:
            raise InvalidValue(
                "rope_dim", f"{target.rope_dim} is more than the source's keys", expected=f"at most {room}"
            )
        if target.rank > 2 * room:
            raise InvalidValue(
                "rank", f"{target.rank} is more than the source's keys and values", expected=f"at most {2 * room}"
            )
        multiplier = getattr(source, "multiplier", target.multiplier)
        if target.multiplier != multiplier:
            raise InvalidValue("scale", f"{target.multiplier} differs from the source's", expected=str(multiplier))
        self._check_biases(source, target, width)

    def _check_biases(self, source: Attention, target: MultiHeadLatentAttention, width: int) -> None:
        given = source.weights(width)
        for bias, field, there in (
            ("q_bias", "q_bias", target.q_bias),
            ("k_bias", "k_bias", target.k_bias or not target.pairs),
            ("v_bias", "o_bias", target.o_bias),
            ("o_bias", "o_bias", target.o_bias),
        ):
            if bias in given and not there:
                raise InvalidValue(field, f"the source's {bias} has no place", expected="true")

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """Second moments of queries and keys, attention by distance, and keys and values together."""
        return {
            "key_value": KeyValueMoments(),
            "query": QueryMoments(),
            "key": KeyMoments(),
            "distance": DistanceMoments(),
        }

    def start(
        self,
        source: Attention,
        weights: Mapping[str, Tensor],
        target: Attention,
        width: int,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> Started:
        """Every weight of the target, and the share of each signal that its sizes leave out."""
        from caramba_plugins_mla.start import start

        assert isinstance(target, MultiHeadLatentAttention)
        return start(source, weights, target, width, moments)
