"""The test of uniform ranks: exact size, known power, band that agrees."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sbijax.diagnostics import uniformity_band, uniformity_p_value
from sbijax.diagnostics.uniformity import rank_counts


@pytest.mark.parametrize(("num_ranks", "num_samples"), [(4, 3), (6, 2), (9, 1)])
def test_p_value_is_exact_on_every_outcome(num_ranks, num_samples):
    values = range(num_samples + 1)
    p_values = np.array(
        [
            uniformity_p_value(ranks, num_samples)
            for ranks in itertools.product(values, repeat=num_ranks)
        ]
    )
    # The probability of a p-value this small or smaller is the p-value itself.
    shares = np.mean(p_values[None, :] <= p_values[:, None] + 1e-12, axis=1)
    np.testing.assert_allclose(shares, p_values, atol=1e-10)


@pytest.mark.parametrize(("num_ranks", "num_samples"), [(50, 1000), (2000, 100)])
def test_p_values_are_uniform_under_the_null(num_ranks, num_samples):
    rng = np.random.default_rng(num_ranks)
    ranks = rng.integers(0, num_samples + 1, (1000, num_ranks))
    p_values = np.array([uniformity_p_value(r, num_samples) for r in ranks])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    # Two standard errors of a share of 5 % in 1,000 trials.
    assert abs(np.mean(p_values < 0.05) - 0.05) < 2 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("a", "b"), [(1.3, 1.0), (1.0, 1.3), (0.75, 0.75), (1.4, 1.4)])
def test_catches_shifted_and_dispersed_ranks(a, b):
    rng = np.random.default_rng(0)
    ranks = np.floor(rng.beta(a, b, (20, 500)) * 101)
    p_values = [uniformity_p_value(r, 100) for r in ranks]
    # 500 draws of these put the mean or the variance 4.5 to 7 sd from uniform.
    assert np.mean(np.array(p_values) < 0.05) >= 0.85


def test_small_p_values_keep_their_order():
    p_values = [uniformity_p_value(np.zeros(n), 99) for n in (1, 2, 4, 8, 16, 32)]
    assert all(np.diff(p_values) < 0)
    assert 0 < p_values[-1] < 1e-30


@pytest.mark.parametrize(("num_ranks", "num_samples"), [(60, 40), (700, 1000)])
def test_band_is_left_exactly_when_the_p_value_is_small(num_ranks, num_samples):
    rng = np.random.default_rng(1)
    band = uniformity_band(num_ranks, num_samples, level=0.8)
    outcomes = set()
    for ranks in rng.integers(0, num_samples + 1, (200, num_ranks)):
        share = rank_counts(ranks, num_samples) / num_ranks
        outside = bool(np.any((share < band.lower) | (share > band.upper)))
        assert outside == (uniformity_p_value(ranks, num_samples) <= 0.2)
        outcomes.add(outside)
    assert outcomes == {True, False}


def test_band_narrows_with_level_and_number():
    wide, narrow = (uniformity_band(200, 500, level=v) for v in (0.99, 0.5))
    assert np.all(wide.upper - wide.lower >= narrow.upper - narrow.lower)
    many = uniformity_band(20_000, 500)
    few = uniformity_band(200, 500)
    ratio = np.mean(few.upper - few.lower) / np.mean(many.upper - many.lower)
    assert 8 < ratio < 12  # square root of 100


def test_refuses_ranks_out_of_range():
    with pytest.raises(ValueError, match="run from 0 to 10, got 0 to 11"):
        uniformity_p_value([0, 11], 10)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        uniformity_p_value([], 10)
    with pytest.raises(ValueError, match="level"):
        uniformity_band(10, 10, level=95)
    with pytest.raises(ValueError, match="at least 1"):
        uniformity_band(0, 10)
