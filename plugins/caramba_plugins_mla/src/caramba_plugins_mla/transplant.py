"""Starting MLA from any rotary multi-head or grouped-query attention, without a gradient step.

The mathematics stands, a step a file, in :mod:`caramba_plugins_mla.start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caramba_plugins_standard.gqa import GroupedAttention
from caramba_plugins_upcycle.moments import DistanceMoments, KeyMoments, KeyValueMoments, QueryMoments
from caramba_plugins_upcycle.transplant import CacheBudget, Calibrated, Moment, Started, Transplant

from caramba_core.components import Attention, component, evolve, option
from caramba_core.errors import InvalidValue
from caramba_core.sites import Site
from caramba_plugins_mla.attention import MultiHeadLatentAttention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GQAToMLA", "InputMoments"]


@component
class InputMoments(Moment):
    """``mean`` ``[D]`` and ``second`` ``[D, D]`` of what the attention reads; uncentred, float64.

    A token counts half for itself, and half by the attention that it gets.
    """

    builds: ClassVar[str] = "caramba_plugins_mla.collector:InputCollector"


@component
class GQAToMLA(Transplant):
    """A rotary key shared by principal components, and one latent for the rest of the keys and for the values.

    At full sizes (``rope_dim`` and ``rank`` as wide as all keys, and keys and values) nothing is lost.  Below, two
    things are: components that lose their rotation see each token as if it stood where the query stands, and the latent
    leaves out what scores and outputs read least.  A latent that is normalized gives one of its values to a large
    component that is nearly the same for all tokens, so that the norm is, too
    (:mod:`caramba_plugins_mla.start.steady`).
    """

    target: ClassVar[type[Attention]] = MultiHeadLatentAttention
    same: ClassVar[tuple[str, ...]] = ("n_heads", "n_kv_heads", "head_dim", "scale")
    without: ClassVar[tuple[str, ...]] = ("qk_norm_eps", "window")

    pairs: tuple[int, ...] | None = option(
        default=None,
        help="rotary pairs that servable attentions turn with in every layer: from 0 on, at equal steps; the step that "
        "costs least over all layers if not given",
    )

    def survey(self, sites: Sequence[Site]) -> Mapping[str, Moment]:
        """Servable attentions have one list of pairs, which all layers' moments choose."""
        targets = [config for site in sites if (config := _servable(site)) is not None]
        for target in targets:
            for field in ("rope_dim", "rank", "head_dim", "n_heads"):
                ours, first = getattr(target, field), getattr(targets[0], field)
                if ours != first:
                    raise InvalidValue(
                        field,
                        f"{ours} in one layer and {first} in another: DeepSeek's attention has one size in all layers",
                        expected="equal sizes where layout is servable",
                        hint="sizes by layer need layout: free, which has no export",
                    )
        if self.pairs is not None or not targets:
            return {}
        return {"query": QueryMoments(), "key": KeyMoments(), "distance": DistanceMoments()}

    def surveyed(self, sites: Sequence[Site], moments: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> Transplant:
        """With the pairs that cost least, added up over the layers of servable attentions."""
        from caramba_plugins_mla.start.assemble import common_pairs

        layers = [
            (target, gathered)
            for site, gathered in zip(sites, moments, strict=True)
            if (target := _servable(site)) is not None
        ]
        return evolve(self, pairs=common_pairs(layers))

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Sizes up to the source's own, the source's rotation, and a place for each of its biases."""
        super().check(source, target, width)
        assert isinstance(target, MultiHeadLatentAttention)
        if target.turned_width != target.head_dim:
            raise InvalidValue(
                "rope_width", f"{target.turned_width} is not the source's", expected=f"{target.head_dim}, or none"
            )
        rope = getattr(source, "rope", None)
        if target.rope != rope and (target.pairs or rope is not None):
            raise InvalidValue("rope", f"{target.rope} differs from the source's", expected=str(rope))
        room, steady = target.n_kv_heads * target.head_dim, target.latent_norm_eps is not None
        sizes = (("rope_dim", room, "keys"), ("rank", 2 * room + steady, "keys and values"))
        for field, most, what in sizes:
            if getattr(target, field) > most:
                said = f"{getattr(target, field)} is more than the source's {what}"
                raise InvalidValue(field, said, expected=f"at most {most}")
        if steady and target.rank < 2:
            raise InvalidValue("rank", "1: the start of a normalized latent takes one value for the norm", expected="2")
        self._check_pairs(target)
        given = source.weights(width)
        for bias, field, there in (
            ("q_bias", "q_bias", target.q_bias),
            ("k_bias", "k_bias", target.k_bias or not target.pairs),
            ("v_bias", "o_bias", target.o_bias or steady),
            ("o_bias", "o_bias", target.o_bias),
        ):
            if bias in given and not there:
                raise InvalidValue(field, f"the source's {bias} has no place", expected="true")

    def propose(self, source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any]:
        """A third of the cached values for the rotary key, as far as the source has pairs that turn."""
        assert isinstance(source, GroupedAttention)
        values, rope_dim = budget.values(source, width, entries=2), 0
        if source.rope is not None:
            turning = sum(frequency != 0 for frequency in source.rope.frequencies(source.head_dim))
            step = 8 if values >= 64 else 2
            rope_dim = min(step * max(1, round(values / (3 * step))), 2 * source.n_kv_heads * turning)
        if rope_dim >= values:
            raise InvalidValue(None, f"a rotary key and a latent take 3 cached values, and {values} are left")
        biases = {"q_bias": source.qkv_bias, "k_bias": source.qkv_bias and rope_dim > 0, "o_bias": True}
        sizes = {"rank": values - rope_dim, "rope_dim": rope_dim}
        return {**sizes, **{name: True for name, there in biases.items() if there}}

    def _check_pairs(self, target: MultiHeadLatentAttention) -> None:
        if self.pairs is None or target.layout != "servable":
            return
        step = self.pairs[1] - self.pairs[0] if len(self.pairs) > 1 else 1
        wanted = tuple(range(0, target.pairs * max(step, 1), max(step, 1)))
        if self.pairs != wanted or self.pairs[-1] >= target.head_dim // 2:
            raise InvalidValue(
                None,
                f"pairs: {list(self.pairs)} are not those of a rotary key of {target.rope_dim} values",
                expected=f"{target.pairs} numbers below {target.head_dim // 2}, from 0 on, at equal steps",
            )

    def has_constant(self, target: Attention) -> bool:
        """The steady component of a normalized latent, as far as heads read it as a value."""
        assert isinstance(target, MultiHeadLatentAttention)
        return target.latent_norm_eps is not None

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """Second moments of queries and keys, attention by distance, keys and values together, and inputs."""
        assert isinstance(target, MultiHeadLatentAttention)
        wanted: dict[str, Moment] = {
            "key_value": KeyValueMoments(),
            "query": QueryMoments(),
            "key": KeyMoments(),
            "distance": DistanceMoments(),
        }
        return wanted if target.latent_norm_eps is None else {**wanted, "input": InputMoments()}

    def start(self, source: Calibrated, target: Attention) -> Started:
        """Every weight of the target, and the share of each signal that its sizes leave out."""
        from caramba_plugins_mla.start.assemble import start

        assert isinstance(target, MultiHeadLatentAttention)
        pairs = self.pairs if target.layout == "servable" else None  # a survey may have set them for other sites
        return start(source, target, pairs=pairs)


def _servable(site: Site) -> MultiHeadLatentAttention | None:
    """The attention of a site, if it is to be servable."""
    config = site.student.config
    return config if isinstance(config, MultiHeadLatentAttention) and config.layout == "servable" else None
