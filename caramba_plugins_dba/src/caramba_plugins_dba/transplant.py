"""Starting DBA from any rotary multi-head or grouped-query attention, without a gradient step.

The mathematics stands in ``docs/dba-record.md`` and, a function a step, in :mod:`caramba_plugins_dba.start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import attrs
from caramba_plugins_upcycle.moments import (
    AttendedKeyMoments,
    AttendedValueMoments,
    DistanceMoments,
    KeyMoments,
    KeyValueMoments,
    QueryMoments,
)
from caramba_plugins_upcycle.transplant import CacheBudget, Calibrated, Example, Moment, SizeCurve, Started, Transplant

from caramba_core.components import Attention, component, evolve, option
from caramba_core.errors import InputError, InvalidValue
from caramba_core.sites import Site
from caramba_plugins_dba.attention import DecoupledBottleneckAttention

if TYPE_CHECKING:
    from torch import Tensor, nn

    from caramba_plugins_dba.start import StartCase

__all__ = ["GQAToDBA"]


_NO_START: Final = {
    "null": "the source has no key and value besides its tokens', and any share for one is taken from them",
    "tied_semantic": "the source's queries are not its keys",
}
"""Options of the target that no source has a counterpart of; gates and temperatures start where they change nothing."""


@component
class GQAToDBA(Transplant):
    """Rotary pairs by their importance, query-aware semantic keys, attention-weighted values; then least squares."""

    target: ClassVar[type[Attention]] = DecoupledBottleneckAttention
    same: ClassVar[tuple[str, ...]] = (
        *("n_heads", "n_kv_heads", "head_dim", "scale"),
        *("qk_norm_eps", "qk_norm_span", "qk_norm_offset"),
    )

    selection: Literal["rotation", "norm", "frequency"] = option(
        default="rotation", help="what a rotary pair is kept for: the error without it, or (controls) energy, frequency"
    )
    fold: Literal["none", "mean", "phase"] = option(
        default="none",
        help="what stands in for the rotation of a moved pair: nothing, its mean, or the mean's direction",
    )
    pairs: tuple[int, ...] | None = option(
        default=None,
        help="rotary pairs that servable attentions turn with in every layer and group, ascending; those that cost "
        "least over all layers if not given",
    )
    weighting: Literal["calibration", "none"] = option(
        default="calibration",
        help="what errors are weighed by: calibration moments, or nothing (control: plain truncated decompositions)",
    )
    key_price: float = option(
        default=1.0,
        help="of joint latents: what an error of a score costs the output, over what errors that know nothing of each "
        "other would",
        above=0.0,
    )
    refits: str = option(
        default="v",
        help="projections refitted in turn on calibration tokens: q queries, k keys, v values",
    )
    rows: int = option(default=4096, help="calibration queries that a refit looks at", unit="tokens", minimum=1)
    logit_ridge: float = option(default=0.5, help="pull of queries and keys towards their closed form", above=0.0)
    value_ridge: float = option(default=0.03, help="pull of values towards their closed form", above=0.0)
    value_rounds: int = option(default=2, help="alternations between the value latent and what reads it", minimum=1)
    iterations: int = option(default=6, help="conjugate-gradient steps of a refit", minimum=1)

    def __attrs_post_init__(self) -> None:
        if set(self.refits) - set("qkv"):
            raise InvalidValue("refits", f"{self.refits!r} has other letters than q, k and v")

    def survey(self, sites: Sequence[Site]) -> Mapping[str, Moment]:
        """Servable attentions have one size in all layers, and one list of pairs, which all layers' moments choose."""
        targets = [config for site in sites if (config := _servable(site)) is not None]
        for target in targets:
            for field in ("geo_dim", "sem_dim", "groups"):
                ours, first = getattr(target, field), getattr(targets[0], field)
                if ours != first:
                    raise InvalidValue(
                        field,
                        f"{ours} in one layer and {first} in another: an ordinary attention has one size in all layers",
                        expected="equal sizes where layout is servable",
                        hint="sizes by layer need layout: free, and an export that brings its own code",
                    )
        if self.pairs is not None or not any(target.pairs for target in targets):
            return {}
        return {"query": QueryMoments(), "key": KeyMoments(), "distance": DistanceMoments()}

    def surveyed(self, sites: Sequence[Site], moments: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> Transplant:
        """With the pairs that cost least, added up over the layers and groups of servable attentions."""
        from caramba_plugins_dba.start import common_pairs

        layers = []
        for site, gathered in zip(sites, moments, strict=True):
            target = _servable(site)
            if target is not None:
                assert isinstance(site.teacher.config, Attention)
                layers.append((site.teacher.config, target, gathered))
        return evolve(self, pairs=common_pairs(layers))

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Sizes that the source can fill, its rotation and its window."""
        super().check(source, target, width)
        assert isinstance(target, DecoupledBottleneckAttention)
        rope = getattr(source, "rope", None)
        if rope is None and self.fold != "none":
            raise InvalidValue(None, f"fold: {self.fold} has nothing to fold: the source has no rotary embedding")
        if rope is None and target.pairs:
            raise InvalidValue("geo_dim", "the source has no rotary embedding", expected="0")
        if rope is not None and target.rope is not None and target.rope != rope:
            raise InvalidValue("rope", f"{target.rope} differs from the source's", expected=str(rope))
        seen = getattr(source, "window", None)
        if target.window != seen:
            raise InvalidValue(
                "window", f"{_shown(target.window)} is not what the source's tokens see", expected=_shown(seen)
            )
        for field, reason in _NO_START.items():
            if getattr(target, field):
                raise InvalidValue(field, f"there is no start: {reason}", expected="false, or training from scratch")
        self._check_shared_key(target)
        every = target.n_kv_heads * target.head_dim
        room, joint = every - target.geo_dim, target.latent == "joint"
        if target.sem_dim > room:
            raise InvalidValue(
                "sem_dim",
                f"{target.sem_dim} is more than the pairs that are not kept can fill",
                expected=f"at most {room}",
            )
        most, what = (every + room, "values and the keys that are not rotary") if joint else (every, "values")
        if target.v_dim > most:
            raise InvalidValue("v_dim", f"{target.v_dim} is more than the source's {what}", expected=f"at most {most}")
        if joint and (self.fold, self.weighting) != ("none", "calibration"):
            raise InvalidValue(
                None,
                f"fold: {self.fold}, weighting: {self.weighting}: a joint latent is of calibrated keys as they are",
                expected="fold: none and weighting: calibration",
            )
        if joint and set(self.refits) & set("qk"):
            raise InvalidValue(
                None, f"refits: {self.refits}: keys of a joint latent are not refitted", expected="refits: v"
            )
        if target.qk_norm_eps is not None and set(self.refits) & set("qk"):
            raise InvalidValue(
                None, f"refits: {self.refits}: behind norms, queries and keys are no linear maps", expected="refits: v"
            )
        self._check_biases(source, target, width)

    def _check_shared_key(self, target: DecoupledBottleneckAttention) -> None:
        """What chooses pairs of single heads does not choose components of several, which have their own pairs."""
        shared = target.geo_layout == "shared"
        if shared and (self.selection, self.fold, self.weighting) != ("rotation", "none", "calibration"):
            raise InvalidValue(
                "geo_layout", "selection, fold and weighting are of pairs of single heads", expected="per_head"
            )
        if shared and target.k_layout != "shared":
            raise InvalidValue("k_layout", "a shared rotary key leaves no keys of single heads", expected="shared")
        if self.pairs is None:
            return
        most = target.n_kv_heads // target.groups
        if target.layout != "servable":
            raise InvalidValue(None, "pairs: these are of layout: servable, and others have their own", expected="none")
        if (
            len(self.pairs) != target.pairs
            or list(self.pairs) != sorted(self.pairs)
            or any(not 0 <= pair < target.head_dim // 2 or self.pairs.count(pair) > most for pair in self.pairs)
        ):
            raise InvalidValue(
                None,
                f"pairs: {list(self.pairs)} are not those of a rotary key of {target.geo_dim // target.groups} values",
                expected=f"{target.pairs} ascending numbers below {target.head_dim // 2}, each at most {most} times",
            )

    def _check_biases(self, source: Attention, target: DecoupledBottleneckAttention, width: int) -> None:
        """Every bias of the source has a place, but one on keys without position, which changes no softmax.

        A bias of the values may go to the output: what attention mixes them with sums to one.
        """
        given = source.weights(width)
        for bias, there in (
            ("q_bias", target.q_bias),
            ("k_bias", target.k_bias or not (target.pairs or target.qk_norm_eps)),
            ("v_bias", target.v_bias or target.o_bias),
            ("o_bias", target.o_bias),
        ):
            if bias in given and not there:
                raise InvalidValue(bias, f"the source's {bias} has no place", expected="true")

    def propose(self, source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any]:
        """Sizes of the servable layout where it can express this model, of the free one elsewhere."""
        from caramba_plugins_dba.sizes import proposed

        return proposed(source, width, budget)

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """Second moments of queries and keys, attention by distance, and what attention makes of keys and values."""
        assert isinstance(target, DecoupledBottleneckAttention)
        first: dict[str, Moment] = {"query": QueryMoments(), "key": KeyMoments(), "distance": DistanceMoments()}
        if target.latent == "joint":
            return {**first, "key_value": KeyValueMoments()}
        return {
            **first,
            "attended_key": AttendedKeyMoments(),
            "attended_value": AttendedValueMoments(),
        }

    def start(self, source: Calibrated, target: Attention) -> Started:
        """Every weight of the target, and the share of each signal that its ranks leave out."""
        from caramba_plugins_dba.start import start, start_behind_norms

        assert isinstance(target, DecoupledBottleneckAttention)
        if self.weighting == "none":
            from caramba_plugins_dba.start.white import white_moments

            source = attrs.evolve(source, moments=white_moments(source, target))
        starting = start if target.qk_norm_eps is None else start_behind_norms
        return starting(self._case(source, target))

    def _case(self, source: Calibrated, target: DecoupledBottleneckAttention) -> StartCase:
        from caramba_plugins_dba.start import StartCase

        pairs = self.pairs if target.layout == "servable" else None  # a survey may have set them for other sites
        settings: dict[str, Any] = {"selection": self.selection, "fold": self.fold, "key_price": self.key_price}
        return StartCase(source=source, target=target, pairs=pairs, **settings)

    def size_curves(self, source: Calibrated, target: Attention) -> Sequence[SizeCurve]:
        """Rotary keys, semantic keys and values of shared latents; layouts a head have no sizes of their own by layer.

        Raises :class:`~caramba_core.errors.InputError` for servable attentions, which have one size.
        """
        from caramba_plugins_dba.start import size_curves

        assert isinstance(target, DecoupledBottleneckAttention)
        if target.layout == "servable":
            raise InputError(
                "a budget is divided among layers, and layout: servable has one size in all of them",
                hint="sizes by layer need layout: free, and an export that brings its own code",
            )
        layouts = target.k_layout, target.v_layout, target.groups
        if layouts != ("shared", "latent", 1) or not (target.sem_width and target.pairs):
            return ()
        return size_curves(self._case(source, target))

    def refine(self, source: Calibrated, module: nn.Module, examples: Sequence[Example]) -> Mapping[str, Any]:
        """Queries, keys and values by least squares; the remaining error of each step."""
        from caramba_plugins_dba.module import DecoupledBottleneckModule
        from caramba_plugins_dba.refine import refine

        assert isinstance(module, DecoupledBottleneckModule)
        return refine(
            source.weights,
            module,
            examples,
            refits=self.refits,
            rows=self.rows,
            logit_ridge=self.logit_ridge,
            value_ridge=self.value_ridge,
            value_rounds=self.value_rounds,
            iterations=self.iterations,
        )

    def refine_bytes(
        self, source: Attention, target: Attention, width: int, *, tokens: int, batch: int, context: int
    ) -> int:
        """Of values: second moments of what all heads mix, in float64, and one example's.  Of queries and keys: the
        attention of the sampled rows.
        """
        assert isinstance(target, DecoupledBottleneckAttention)
        rows = min(self.rows, tokens)
        attention = 2 * 4 * target.n_heads * context  # in float32, of one row
        logits = rows * attention if set(self.refits) & set("qk") else 0
        if "v" not in self.refits or target.v_layout != "latent":
            return logits
        mixed = target.v_dim if target.latent == "joint" else target.n_kv_heads * target.head_dim
        size = target.n_heads * mixed + width + 1
        return max(logits, 3 * 8 * size**2 + rows * batch // tokens * (3 * 4 * size + attention))


def _servable(site: Site) -> DecoupledBottleneckAttention | None:
    """The attention of a site, if it is to be servable."""
    config = site.student.config
    return config if isinstance(config, DecoupledBottleneckAttention) and config.layout == "servable" else None


def _shown(window: int | None) -> str:
    return "all tokens" if window is None else f"{window} tokens"
