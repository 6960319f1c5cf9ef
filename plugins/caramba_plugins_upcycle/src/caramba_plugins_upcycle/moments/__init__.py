"""Calibration statistics of an attention, collected in one streaming pass.

Each config names a collector that reads a :class:`~caramba_plugins_standard.probing.Probe` and knows no type of
attention.  All moments are uncentred, before rotation and uniform over tokens unless they say otherwise; sums are
float64.

Axes: H query heads, G key/value heads, d width of a head, T tokens of a calibration window.
"""

from __future__ import annotations

from typing import ClassVar

from caramba_core.components import component
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


@component
class QueryMoments(Moment):
    """``mean`` ``[H, d]`` and ``second`` ``[H, d, d]`` of each head's queries before rotation."""

    builds: ClassVar[str] = f"{_COLLECTORS}:QueryCollector"


@component
class KeyMoments(Moment):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of all heads' keys before rotation, side by side."""

    builds: ClassVar[str] = f"{_COLLECTORS}:KeyCollector"


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


@component
class AttendedValueMoments(Moment):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of all values as each query head's attention mixes them."""

    builds: ClassVar[str] = f"{_COLLECTORS}:AttendedValueCollector"


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
