import numpy as np
import pytest
from caramba_plugins_standard.training.windows import Windows
from hypothesis import given
from hypothesis import strategies as st

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError


def tokens(count: int) -> Tokens:
    return Tokens(ids=np.arange(count, dtype=np.uint16), tokenizer=None, origin="test.npy")


@given(count=st.integers(2, 400), context=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_window_comes_once_an_epoch(count: int, context: int, seed: int) -> None:
    if (count - 1) // context < 1:
        with pytest.raises(InputError, match="too few"):
            Windows(tokens(count), context=context, seed=seed)
        return
    windows = Windows(tokens(count), context=context, seed=seed)
    starts = [int(windows.sample(index)[0]) for index in range(2 * windows.count)]
    expected = list(range(0, windows.count * context, context))
    assert sorted(starts[: windows.count]) == expected
    assert sorted(starts[windows.count :]) == expected


@given(first=st.integers(0, 50), size=st.integers(1, 7))
def test_a_batch_depends_on_its_place_alone(first: int, size: int) -> None:
    """What resuming needs: a fresh object gives the same batch that one which ran from the start gives."""
    walked = Windows(tokens(200), context=7, seed=3)
    for index in range(first):
        walked.sample(index)
    fresh = Windows(tokens(200), context=7, seed=3)
    assert (walked.batch(first, size) == fresh.batch(first, size)).all()


def test_a_sample_carries_the_token_after_it() -> None:
    sample = Windows(tokens(30), context=7, seed=0).sample(0)
    assert sample.shape == (8,)
    assert sample.dtype == np.int64
    assert (np.diff(sample) == 1).all()


def test_epochs_have_different_orders() -> None:
    windows = Windows(tokens(400), context=4, seed=0)
    first = [int(windows.sample(index)[0]) for index in range(windows.count)]
    second = [int(windows.sample(windows.count + index)[0]) for index in range(windows.count)]
    assert first != second
