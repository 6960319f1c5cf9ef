"""Which windows calibration reads: of a mixture each part's share, within two windows, however many they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from caramba_plugins_standard.mixtures import MixedTokens
from caramba_plugins_upcycle.convert import calibration_windows
from caramba_plugins_upcycle.modes import Start
from hypothesis import given
from hypothesis import strategies as st

from caramba_core.datasets import Tokens

CONTEXT = 4


def source(part: int, windows: int = 400) -> Tokens:
    """Windows of tokens that say which part they are of."""
    return Tokens(ids=np.full(CONTEXT * windows + 1, part, np.uint16), tokenizer=None, origin=f"part {part}")


@given(count=st.integers(1, 200), skip=st.integers(0, 150), seed=st.integers(0, 99))
def test_two_texts_of_equal_weight_are_halves_of_any_calibration(count: int, skip: int, seed: int) -> None:
    """Those that measure a calibration's curves, which come behind its own, are halves too."""
    tokens = MixedTokens.of([(1.0, source(0)), (1.0, source(1))])
    windows, taken = calibration_windows(tokens, Start(tokens=count * CONTEXT, max_context=CONTEXT), seed, skip=skip)
    drawn = Counter(windows.batch(skip, taken)[:, 0].tolist())
    assert taken == count
    assert abs(drawn[0] - count / 2) <= 2


@pytest.mark.parametrize("parts", [3, 17])
def test_each_of_many_texts_is_drawn_in_its_turn(parts: int) -> None:
    tokens = MixedTokens.of([(1.0, source(part)) for part in range(parts)])
    for count in range(parts, 8 * parts, parts):
        windows, _ = calibration_windows(tokens, Start(tokens=count * CONTEXT, max_context=CONTEXT), 42)
        drawn = Counter(windows.batch(0, count)[:, 0].tolist())
        assert all(abs(drawn[part] - count / parts) <= 2 for part in range(parts))
