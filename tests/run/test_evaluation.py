import math

import numpy as np
from caramba_plugins_standard.measurement import Measurement, paired_difference


def measurement(nll: np.ndarray) -> Measurement:
    return Measurement(nll=nll.astype(np.float32))


def test_perplexity_is_exp_of_the_mean() -> None:
    assert math.isclose(measurement(np.full((3, 10), math.log(7.0))).perplexity, 7.0, rel_tol=1e-6)


def test_the_standard_error_covers_the_truth_as_often_as_it_says() -> None:
    """Over many drawn measurements the true mean lies within two standard errors in about 95 % of them."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        drawn = measurement(generator.normal(2.0, 1.0, size=(8, 256)))
        assert drawn.standard_error is not None
        inside += abs(drawn.perplexity - math.exp(2.0)) < 2 * drawn.standard_error
    assert 0.90 <= inside / 400 <= 0.98


def test_neighbouring_tokens_that_agree_make_the_error_larger() -> None:
    generator = np.random.default_rng(0)
    independent = measurement(generator.normal(size=(4, 1024)))
    alike = measurement(np.repeat(generator.normal(size=(4, 16)), 64, axis=1))
    assert alike.standard_error is not None
    assert independent.standard_error is not None
    assert alike.standard_error > 3 * independent.standard_error


def test_a_paired_difference_cancels_what_both_share() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(3.0, 1.0, size=(4, 512))
    start, end = measurement(shared), measurement(shared - 0.1 + generator.normal(0, 0.01, size=shared.shape))
    mean, error = paired_difference(end, start)
    assert math.isclose(mean, -0.1, abs_tol=0.005)
    assert error is not None
    assert error < 0.002


def test_one_block_of_tokens_has_no_standard_error() -> None:
    few = measurement(np.full((1, 15), 2.0))
    assert few.standard_error is None
    assert paired_difference(few, few) == (0.0, None)
