"""The statistic that a joint latent of keys and values starts from.

Axes: H query heads, G key/value heads, d width of a head; ``u = [k; v]`` of all key/value heads side by side, 2 G d
wide.
"""

from __future__ import annotations

from typing import ClassVar

from caramba_plugins_upcycle.transplant import Moment

from caramba_core.component import component

__all__ = ["KeyValueMoments"]


@component
class KeyValueMoments(Moment):
    """How keys (before rotation) and values vary together, over tokens and under attention; uncentred, float64.

    ``token_mean`` ``[2 G d]`` and ``token_second`` over tokens; ``attended_mean`` and ``attended_second`` of the
    mixtures ``sum_s p_ts u_s`` that query heads make; ``spread`` how ``u`` varies under one query's attention.
    ``noise`` ``[H, d, d]`` is ``sum_s p_ts^2 (v_s - y_t)(v_s - y_t)^T`` with the head's own values: what errors of the
    scores that know nothing of each other do to its mixture.
    """

    builds: ClassVar[str] = "caramba_plugins_mla.collector:KeyValueCollector"
