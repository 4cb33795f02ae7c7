"""Coverage against its closed form for Gaussian posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sbijax.base import Estimator
from sbijax.data import make_simulations
from sbijax.diagnostics import coverage, sbc, sbc_result

NUM_DIMS = 2
LEVELS = np.array([0.1, 0.5, 0.8, 0.95])


def sample_fn(params, key, x, *, num_samples):
    noise = jax.random.normal(key, (num_samples, NUM_DIMS))
    return (x + params[1] + params[0] * noise) / 2, None


def log_prob_fn(params, theta, x):
    return -jnp.sum((2 * theta - x - params[1]) ** 2) / 2 / params[0] ** 2


ESTIMATOR = Estimator(init=None, loss=None, log_prob=log_prob_fn, sample=sample_fn)


def run(scale, shift, seed=0):
    """Coverage where the posterior is N(x / 2, I / 4) and q is off by params."""
    theta_key, x_key, key = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(x_key, (2000, NUM_DIMS))
    theta = (x + jax.random.normal(theta_key, x.shape)) / 2
    sims = make_simulations(theta, x)
    params = jnp.array([scale, shift])
    return coverage(sbc(key, ESTIMATOR, params, sims), levels=LEVELS)


def closed_form(scale, shift):
    radius = stats.norm.ppf(0.5 + LEVELS / 2) * scale
    central = stats.norm.cdf(shift + radius) - stats.norm.cdf(shift - radius)
    squared = stats.chi2.ppf(LEVELS, NUM_DIMS) * scale**2
    density = stats.ncx2.cdf(squared, NUM_DIMS, NUM_DIMS * shift**2 + 1e-12)
    return np.column_stack([central, central, density])


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (1.5, 0.0), (0.6, 0.0), (1.0, 0.7)]
)
def test_coverage_matches_its_closed_form(scale, shift):
    result = run(scale, shift)
    assert result.names == ("theta[0]", "theta[1]", "highest density")
    expected = closed_form(scale, shift)
    error = np.sqrt(expected * (1 - expected) / result.num_replicates)
    # Twelve shares: 3.5 standard errors hold all of them but once in 180 runs;
    # 1,000 draws blur the ends of the regions by another half a per cent.
    assert np.all(np.abs(result.empirical - expected) < 3.5 * error + 0.005)
    inside = (result.lower[:, None] <= result.empirical) & (
        result.empirical <= result.upper[:, None]
    )
    if (scale, shift) == (1.0, 0.0):
        assert np.mean(inside) >= 10 / 12
    else:
        assert not np.any(inside[1:3])


@pytest.mark.parametrize("num_samples", [1, 4, 99, 100])
def test_uniform_ranks_cover_exactly_the_nominal_level(num_samples):
    ranks = np.repeat(np.arange(num_samples + 1)[:, None], 2, axis=1)
    names = ("alpha", "log_prob")
    result = coverage(sbc_result(ranks, names, num_samples, num_parameters=1))
    assert result.names == ("alpha", "highest density")
    for column in result.empirical.T:
        np.testing.assert_allclose(column, result.nominal, atol=1e-12)


def test_a_parameter_called_log_prob_is_a_parameter():
    ranks = np.full((10, 1), 50)
    result = coverage(sbc_result(ranks, ("log_prob",), 100), levels=0.1)
    assert result.names == ("log_prob",)
    assert result.empirical.item() == 1.0  # the centre, not the mode


def test_high_density_rank_means_covered():
    ranks = np.full((10, 2), 100)
    low = coverage(
        sbc_result(ranks, ("a", "log_prob"), 100, num_parameters=1), levels=[0.5]
    )
    assert low.empirical.tolist() == [[0.0, 1.0]]


def test_errors_are_binomial():
    result = coverage(sbc_result(np.arange(100)[:, None], ("a",), 99), levels=0.5)
    assert result.standard_error.item() == pytest.approx(0.05)
    np.testing.assert_allclose(result.lower, stats.binom.ppf(0.025, 100, 0.5) / 100)
    np.testing.assert_allclose(result.upper, stats.binom.ppf(0.975, 100, 0.5) / 100)


@pytest.mark.parametrize("levels", [[0.0], [1.0], [50], [], [[0.5]], [np.nan]])
def test_refuses_levels_outside_the_unit_interval(levels):
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage(sbc_result(np.arange(5)[:, None], ("a",), 9), levels=levels)
