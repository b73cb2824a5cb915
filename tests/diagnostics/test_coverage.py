"""Coverage curves of ranks."""

import numpy as np
import pytest

from bayesinf.diagnostics import coverage


def test_even_ranks_are_on_the_diagonal():
    curve = coverage(np.arange(50) % 10, 9)
    np.testing.assert_allclose(curve.share, curve.level, atol=1e-15)
    assert curve.error() < 1e-15


def test_truths_far_out_are_covered_less():
    """Ranks that are all the largest: every region but the whole misses."""
    curve = coverage(np.full(30, 9), 9)
    assert np.all(curve.share[:-1] == 0)
    assert curve.share[-1] == 1


def test_stat_the_band_holds_curves_of_a_right_posterior():
    """Of 1,000 curves at most 5 % may leave it, 3 standard deviations of a binomial above."""
    rng = np.random.default_rng(0)
    curves = [coverage(rng.integers(0, 20, 100), 19, 0.95) for _ in range(1000)]
    outside = np.mean([curve.error() > curve.band for curve in curves])
    assert outside < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    # Negative control: a posterior with a tenth too much mass inside.
    biased = coverage(rng.integers(0, 20, 2000) // 2, 19, 0.95)
    assert biased.error() > biased.band


def test_bad_ranks_are_told():
    for ranks, words in (([], "ranks: shape"), ([0, 10], "ranks: 0 to 10 came")):
        with pytest.raises(ValueError, match=words):
            coverage(np.array(ranks, int), 9)
    with pytest.raises(ValueError, match=r"probability: 1\.0 came"):
        coverage(np.zeros(3, int), 9, 1.0)
