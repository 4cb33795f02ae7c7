"""Bernoulli GLM: both tasks against numpy and scipy, and against their observation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sbijax.simulators import bernoulli_glm, bernoulli_glm_raw


def stimulus_and_lags():
    """White noise `[100]`, and what the nine taps see of it `[100, 9]`."""
    u = np.random.RandomState(42).randn(100)
    lags = [[u[t - j] if t >= j else 0.0 for j in range(9)] for t in range(100)]
    return u, np.array(lags)


def spike_probability(theta):
    """P(spike) `[100]`, the filter applied by numpy's convolution."""
    theta = np.asarray(theta, float)
    u, _ = stimulus_and_lags()
    return special.expit(theta[0] + np.convolve(u, theta[1:])[:100])


def prior_precision():
    """Precision of (b, f), from second differences of f with zeros in front."""
    rows = []
    for i in range(9):
        row = np.zeros(9)
        for j, coefficient in ((i, 1.0), (i - 1, -2.0), (i - 2, 1.0)):
            if j >= 0:
                row[j] += coefficient
        row[i] += np.sqrt(i / 9)
        rows.append(row)
    precision = np.zeros((10, 10))
    precision[0, 0] = 0.5
    precision[1:, 1:] = np.transpose(rows) @ rows
    return precision


def draw_theta(seed):
    return bernoulli_glm().prior.sample(jax.random.key(seed))


def test_the_statistics_of_the_observed_spikes_are_those_observed():
    """x = X^T y of the benchmark, which knows nothing of our X."""
    spikes = np.asarray(bernoulli_glm_raw().x_observed, float)
    assert np.isin(spikes, [0.0, 1.0]).all()
    expected = [spikes.sum(), *(stimulus_and_lags()[1].T @ spikes)]
    np.testing.assert_allclose(bernoulli_glm().x_observed, expected, atol=1e-5)


def test_spikes_follow_the_filtered_stimulus():
    theta, size = draw_theta(0), 4000
    keys = jax.random.split(jax.random.key(1), size)
    simulator = jax.jit(jax.vmap(bernoulli_glm_raw().simulator, (0, None)))
    spikes = np.asarray(simulator(keys, theta), float)
    assert np.isin(spikes, [0.0, 1.0]).all()
    p = spike_probability(theta)
    z = (spikes.mean(0) - p) * np.sqrt(size / (p * (1.0 - p)))
    often = size * p * (1.0 - p) > 10.0
    assert often.sum() > 50
    assert stats.kstest(z[often], "norm").pvalue > 1e-3
    total = spikes.sum(1)  # of independent bins
    variance = np.sum(p * (1.0 - p))
    np.testing.assert_allclose(total.var(), variance, rtol=4.5 * np.sqrt(2.0 / size))


def test_statistics_have_the_moments_of_the_filtered_spikes():
    theta, size = draw_theta(2), 4000
    keys = jax.random.split(jax.random.key(3), size)
    x = np.asarray(jax.jit(jax.vmap(bernoulli_glm().simulator, (0, None)))(keys, theta))
    design = np.column_stack([np.ones(100), stimulus_and_lags()[1]])
    p = spike_probability(theta)
    covariance = design.T @ np.diag(p * (1.0 - p)) @ design
    sd = np.sqrt(np.diag(covariance))
    z = (x - design.T @ p) / sd
    assert np.abs(z.mean(0)).max() < 4.5 / np.sqrt(size)
    np.testing.assert_allclose(
        np.cov(z.T), covariance / np.outer(sd, sd), atol=4.5 * np.sqrt(2.0 / size)
    )


@pytest.mark.parametrize("seed", [4, 5])
def test_log_likelihoods_against_scipy(seed):
    theta = draw_theta(seed)
    spikes = np.asarray(bernoulli_glm_raw().x_observed)
    expected = stats.bernoulli(spike_probability(theta)).logpmf(spikes).sum()
    raw = bernoulli_glm_raw().log_likelihood(theta, spikes)
    np.testing.assert_allclose(raw, expected, rtol=1e-4)
    of_statistics = bernoulli_glm().log_likelihood(theta, bernoulli_glm().x_observed)
    np.testing.assert_allclose(of_statistics, expected, rtol=1e-4)


def test_prior_against_scipy():
    exact = stats.multivariate_normal(np.zeros(10), np.linalg.inv(prior_precision()))
    for task in (bernoulli_glm(), bernoulli_glm_raw()):
        theta = jax.vmap(task.prior.sample)(jax.random.split(jax.random.key(6), 2000))
        actual = jax.vmap(task.prior.log_prob)(theta)
        np.testing.assert_allclose(actual, exact.logpdf(theta), atol=1e-3)
        distance = np.einsum("ni,ij,nj->n", theta, prior_precision(), theta)
        assert stats.kstest(distance, stats.chi2(10).cdf).pvalue > 1e-3


@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0, np.nan])
def test_what_is_no_spike_has_probability_zero(bad):
    task = bernoulli_glm_raw()
    x = task.x_observed.at[7].set(bad)
    value, gradient = jax.value_and_grad(task.log_likelihood)(jnp.ones(10), x)
    assert value == -np.inf
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("entry", "bad"), [(0, 55.5), (0, 101.0), (0, -1.0), (3, np.nan), (9, np.inf)]
)
def test_impossible_statistics_have_probability_zero(entry, bad):
    task = bernoulli_glm()
    x = task.x_observed.at[entry].set(bad)
    value, gradient = jax.value_and_grad(task.log_likelihood)(jnp.ones(10), x)
    assert value == -np.inf
    assert np.isfinite(gradient).all()


def test_certain_spikes_keep_finite_gradients():
    theta = jnp.zeros(10).at[0].set(200.0)
    task = bernoulli_glm_raw()
    log_prob = jax.value_and_grad(task.log_likelihood)
    assert log_prob(theta, jnp.ones(100))[0] == 0.0
    value, gradient = log_prob(theta, jnp.zeros(100))
    np.testing.assert_allclose(value, -20_000.0)
    assert np.isfinite(gradient).all()
