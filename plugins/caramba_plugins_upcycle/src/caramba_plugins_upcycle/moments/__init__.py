"""Calibration statistics of an attention, collected in one streaming pass.

Each config names a collector that reads a :class:`~caramba_plugins_standard.probing.Probe` and knows no type of
attention.  All moments are uncentred, before rotation and uniform over tokens unless they say otherwise; sums are
float64.

Axes: H query heads, G key/value heads, d width of a head, T tokens of a calibration window.
"""

from __future__ import annotations

from typing import ClassVar, Final

from caramba_core.components import Attention, component
from caramba_plugins_upcycle.transplant import Moment

__all__ = [
    "AttendedKeyMoments",
    "AttendedValueMoments",
    "DistanceMoments",
    "KeyMoments",
    "KeyValueMoments",
    "QueryMoments",
]

_COLLECTORS = "caramba_plugins_upcycle.moments.collectors"

QUERIES: Final = 256
"""Queries of each head whose mixtures are computed at once."""


@component
class QueryMoments(Moment):
    """``mean`` ``[H, d]`` and ``second`` ``[H, d, d]`` of each head's queries before rotation."""

    builds: ClassVar[str] = f"{_COLLECTORS}:QueryCollector"

    def operations(self, source: Attention, context: int) -> int:
        """Second moments of each head."""
        heads, _, width = _sizes(source)
        return 2 * context * heads * width**2


@component
class KeyMoments(Moment):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of all heads' keys before rotation, side by side."""

    builds: ClassVar[str] = f"{_COLLECTORS}:KeyCollector"

    def operations(self, source: Attention, context: int) -> int:
        """Second moments of all heads together."""
        _, groups, width = _sizes(source)
        return 2 * context * (groups * width) ** 2


@component
class DistanceMoments(Moment):
    """``attention`` ``[H, T]``: the mean attention of each head to the token at each distance; rows sum to one.

    The first token of each window is left out: it is a sink that heads attend to when nothing else is wanted, and its
    distance means nothing.
    """

    builds: ClassVar[str] = f"{_COLLECTORS}:DistanceCollector"


@component
class AttendedKeyMoments(Moment):
    """``covariance`` ``[G d, G d]``: how all heads' keys vary under one query's attention, averaged over queries."""

    builds: ClassVar[str] = f"{_COLLECTORS}:AttendedKeyCollector"

    def operations(self, source: Attention, context: int) -> int:
        """What every query mixes, and second moments of that."""
        _, groups, width = _sizes(source)
        return _of_mixtures(source, context, groups * width)


@component
class AttendedValueMoments(Moment):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of all values as each query head's attention mixes them."""

    builds: ClassVar[str] = f"{_COLLECTORS}:AttendedValueCollector"

    def operations(self, source: Attention, context: int) -> int:
        """What every query mixes, and second moments of that."""
        _, groups, width = _sizes(source)
        return _of_mixtures(source, context, groups * width)


@component
class KeyValueMoments(Moment):
    """How keys (before rotation) and values vary together, over tokens and under attention.

    ``u = [k; v]`` has the keys and the values of all heads side by side.  ``token_mean`` ``[2 G d]`` and
    ``token_second`` over tokens; ``attended_mean`` and ``attended_second`` of the mixtures ``sum_s p_ts u_s`` that
    query heads make; ``spread`` how ``u`` varies under one query's attention.  ``noise`` ``[H, d, d]`` is
    ``sum_s p_ts^2 (v_s - y_t)(v_s - y_t)^T`` with the head's own values: what errors of the scores that know nothing of
    each other do to its mixture.
    """

    builds: ClassVar[str] = f"{_COLLECTORS}:KeyValueCollector"

    def operations(self, source: Attention, context: int) -> int:
        """What every query mixes, second moments of that and of tokens, and the noise of each head."""
        heads, groups, width = _sizes(source)
        noise = 4 * heads * context * width * (context + 2 * width)
        return _of_mixtures(source, context, 2 * groups * width) + 4 * context * (2 * groups * width) ** 2 + noise


def _sizes(source: Attention) -> tuple[int, int, int]:
    """Query heads, key/value heads and their width."""
    heads, groups, width = (getattr(source, name) for name in ("n_heads", "n_kv_heads", "head_dim"))
    return heads, groups, width


def _of_mixtures(source: Attention, context: int, values: int) -> int:
    """Products of causal attention with so many values of each token, and the second moments of what they give."""
    heads, _, _ = _sizes(source)
    seen = sum(min(first + QUERIES, context) * min(QUERIES, context - first) for first in range(0, context, QUERIES))
    return 2 * heads * values * (seen + context * values)
