"""Rotary position embedding as data: which frequencies the pairs of a head turn with (light, no torch).

Dimension ``p`` of a head is paired with ``p + d/2`` (the layout of Hugging Face checkpoints); pair ``p`` turns by
``theta ** (-2p/d)`` radians a token, before scaling.  Where a part of a head turns (``rotated`` of its d values), its
pairs come first, with frequencies as of a head of that width, and the others have frequency 0: readers of checkpoints
put rows of queries and keys into this order.  Fields are named as in Hugging Face's ``rope_parameters``.

Factors that are listed divide each pair's frequency by its own: ``longrope`` of Hugging Face with one list, and
``rope_freqs.weight`` of GGUF.  A huge one holds its pair still.

Sources: RoFormer (arXiv 2104.09864), position interpolation (2306.15595), YaRN and NTK (2309.00071, sections 3 and 4),
Llama 3.1 (2407.21783, and its released configuration).
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, cast

import attrs

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue

__all__ = ["Rope"]

_REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "listed": ("factors",),
}
_OPTIONAL: Final[dict[str, tuple[str, ...]]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "listed": ("attention_factor",),
}
"""Fields that one scaling alone reads, and can do without."""


@component
class Rope:
    """Rotary position embedding: base, and how the frequencies are scaled for contexts longer than the trained one."""

    theta: float = option(default=10000.0, help="base of the frequencies", above=1.0)
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "listed"] = option(
        default="none", help="how frequencies change for longer contexts", choices=tuple(_REQUIRED)
    )
    factor: float | None = option(default=None, help="how many times the context is stretched", minimum=1.0)
    original_max_position_embeddings: int | None = option(
        default=None,
        help="context length before stretching (dynamic: max_position_embeddings of the checkpoint)",
        unit="tokens",
        minimum=1,
    )
    low_freq_factor: float | None = option(
        default=None, help="llama3: waves longer than the original context / this are stretched in full", above=0.0
    )
    high_freq_factor: float | None = option(
        default=None, help="llama3: waves shorter than the original context / this stay", above=0.0
    )
    attention_factor: float | None = option(
        default=None,
        help="yarn: multiplier of cos and sin; from factor if not given (listed: 1 if not given)",
        above=0.0,
    )
    beta_fast: float | None = option(
        default=None, help="yarn: pairs that turn more often over the original context stay (32)", above=0.0
    )
    beta_slow: float | None = option(
        default=None, help="yarn: pairs that turn less often are stretched in full (1)", above=0.0
    )
    mscale: float | None = option(default=None, help="yarn: weight of log(factor) in attention_factor", minimum=0.0)
    mscale_all_dim: float | None = option(
        default=None, help="yarn: weight of log(factor) in the divisor of attention_factor", minimum=0.0
    )
    truncate: bool | None = option(default=None, help="yarn: round the bounds of the ramp to whole pairs (true)")
    rotated: int | None = option(
        default=None, help="values of a head that turn, its first pairs; all if not given", minimum=2
    )
    factors: tuple[float, ...] | None = option(
        default=None, help="listed: what the frequency of each of the head_dim / 2 pairs is divided by"
    )

    def __attrs_post_init__(self) -> None:
        if self.rotated is not None and self.rotated % 2:
            raise InvalidValue("rotated", f"{self.rotated} is odd", expected="an even number: rope turns pairs")
        required = _REQUIRED[self.scaling]
        for name in required:
            if getattr(self, name) is None:
                raise InvalidValue(name, f"missing: {self.scaling} scaling needs it")
        read = {*required, *_OPTIONAL.get(self.scaling, ())}
        for name in sorted({*sum(_REQUIRED.values(), ()), *sum(_OPTIONAL.values(), ())} - read):
            if getattr(self, name) is not None:
                raise InvalidValue(name, f"has no meaning with {self.scaling} scaling", hint="remove it or set scaling")
        if self.scaling == "llama3" and _given(self.low_freq_factor) >= _given(self.high_freq_factor):
            raise InvalidValue("low_freq_factor", f"{self.low_freq_factor} is not below {self.high_freq_factor}")
        if self.rotated is not None and self.attention_scaling != 1:
            raise InvalidValue("rotated", f"yarn multiplies cos and sin by {self.attention_scaling:g}, of all pairs")
        if self.rotated == 2 and self.scaling == "dynamic":
            raise InvalidValue("rotated", "2 is below 4, the least that dynamic scaling can take")
        for place, factor in enumerate(self.factors or ()):
            if not 0 < factor < math.inf:
                raise InvalidValue("factors", f"factor {place} is {factor}", expected="a positive number")

    def require_pairs(self, head_dim: int) -> None:
        """Raise :class:`InvalidValue` where a list of factors is not one for each pair of a head of this width."""
        turning = head_dim if self.rotated is None else min(self.rotated, head_dim)
        if self.factors is not None and 2 * len(self.factors) != turning:
            raise InvalidValue(
                "rope",
                f"{len(self.factors)} factors for a head of {turning} features",
                expected=f"{turning // 2}, one a pair",
            )

    @property
    def attention_scaling(self) -> float:
        """Multiplier of cos and sin, so that scores grow by its square (yarn and listed; 1 otherwise)."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.scaling != "yarn":
            return 1.0
        factor = _given(self.factor)
        if self.mscale and self.mscale_all_dim:
            return _yarn_magnitude(factor, self.mscale) / _yarn_magnitude(factor, self.mscale_all_dim)
        return _yarn_magnitude(factor, 1.0)

    def frequencies(self, head_dim: int, context: int | None = None) -> list[float]:
        """Radians a token of each of the ``head_dim / 2`` pairs, after scaling; 0 for pairs that do not turn.

        ``context`` is the number of tokens served, which dynamic scaling depends on; without one, or up to
        ``original_max_position_embeddings``, dynamic scaling changes nothing.
        """
        assert head_dim % 2 == 0, "rotary pairs need an even head width"
        if self.rotated is not None and self.rotated < head_dim:
            turning: list[float] = attrs.evolve(cast(Any, self), rotated=None).frequencies(self.rotated, context)
            return turning + [0.0] * (head_dim // 2 - len(turning))
        theta = self.theta
        if self.scaling == "dynamic" and context is not None:
            theta *= self._dynamic_stretch(context) ** (head_dim / (head_dim - 2))
        plain = [theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
        if self.scaling == "linear":
            return [f / _given(self.factor) for f in plain]
        if self.scaling == "llama3":
            return [self._llama3(f) for f in plain]
        if self.scaling == "yarn":
            return self._yarn(plain)
        if self.factors is not None:
            return [f / factor for f, factor in zip(plain, self.factors, strict=True)]
        return plain

    def _dynamic_stretch(self, context: int) -> float:
        """At least 1; :mod:`caramba_plugins_standard.rotary` does the same on tensors."""
        factor, original = _given(self.factor), _given(self.original_max_position_embeddings)
        return factor * max(context, original) / original - (factor - 1)

    def _llama3(self, frequency: float) -> float:
        factor, low, high = _given(self.factor), _given(self.low_freq_factor), _given(self.high_freq_factor)
        turns = _given(self.original_max_position_embeddings) * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        return (1 - kept) * frequency / factor + kept * frequency

    def _yarn(self, plain: list[float]) -> list[float]:
        factor, pairs = _given(self.factor), len(plain)
        first = self._yarn_pair(32.0 if self.beta_fast is None else self.beta_fast, pairs)
        last = self._yarn_pair(1.0 if self.beta_slow is None else self.beta_slow, pairs)
        if self.truncate is not False:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        span = last - first if last != first else 0.001
        stretched = [min(1.0, max(0.0, (pair - first) / span)) for pair in range(pairs)]
        return [f / factor * s + f * (1 - s) for f, s in zip(plain, stretched, strict=True)]

    def _yarn_pair(self, turns: float, pairs: int) -> float:
        """The (fractional) pair that turns so often over the original context."""
        original = _given(self.original_max_position_embeddings)
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(self.theta)


def _yarn_magnitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _given(value: float | None) -> float:
    assert value is not None, "checked when the config was made"
    return value
