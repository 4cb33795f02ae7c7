"""SIR: the ODE, the counts, the likelihood and the prior against scipy."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from sbijax.simulators import sir

module = importlib.import_module("sbijax.simulators.sir")

# Outbreak early, late, and none at all.
THETAS = [[0.61, 0.19], [0.25, 0.1], [0.1, 0.15]]
DAYS = 17.0 * np.arange(10)
SIZE = 4000


@pytest.fixture(scope="module")
def simulate():
    """Draws `[4000, 10]` of thetas `[4000, 2]`, compiled once."""
    return jax.jit(jax.vmap(sir().simulator))


@pytest.fixture(scope="module")
def log_prob():
    """Log-likelihood of one theta and one x with its gradient, compiled once."""
    return jax.jit(jax.value_and_grad(sir().log_likelihood))


def share_of_infected(theta):
    """High-precision solution by scipy in people, not logs, `[10]`."""
    beta, gamma = np.asarray(theta, float)

    def rates(_, z):
        new = beta * z[0] * z[1] / 1e6
        return [-new, new - gamma * z[1]]

    start = [1e6 - 1.0, 1.0]
    solution = solve_ivp(rates, (0, 160), start, "DOP853", DAYS, rtol=1e-11, atol=1e-13)
    return solution.y[1] / 1e6


def test_ode_against_scipy():
    theta = jax.vmap(sir().prior.sample)(jax.random.split(jax.random.key(0), 30))
    theta = jnp.concatenate([theta, jnp.array(THETAS)])
    solved = jax.jit(jax.vmap(module._log_infected))(theta)
    for row, log_i in zip(theta, solved, strict=True):
        np.testing.assert_allclose(log_i, np.log(share_of_infected(row)), atol=2e-4)


@pytest.mark.parametrize("theta", THETAS)
def test_log_likelihood_against_scipy(theta, log_prob):
    p = share_of_infected(theta)
    x = stats.binom(1000, p).rvs(random_state=0).astype(float)
    expected = stats.binom(1000, p).logpmf(x).sum()
    actual, _ = log_prob(jnp.array(theta), jnp.asarray(x, jnp.float32))
    # In single precision a log binomial coefficient of 1000 is off by up to 1e-3.
    np.testing.assert_allclose(actual, expected, atol=2e-2)


@pytest.mark.parametrize("theta", THETAS)
def test_counts_are_independent_binomials(theta, simulate):
    p, keys = share_of_infected(theta), jax.random.split(jax.random.key(1), SIZE)
    x = np.asarray(simulate(keys, jnp.tile(jnp.array(theta), (SIZE, 1))), float)
    assert np.all((x >= 0.0) & (x <= 1000.0) & (x == np.floor(x)))
    # Spread evenly over the jump of the cdf at its place, a count is uniform.
    jumps = np.random.default_rng(2).uniform(size=x.shape)
    u = stats.binom.cdf(x, 1000, p) - jumps * stats.binom.pmf(x, 1000, p)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(u.T) - np.eye(10)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(SIZE)


def test_prior_against_scipy():
    prior = sir().prior
    theta = jnp.array([0.7, 0.1])
    exact = [stats.lognorm(0.5, scale=0.4), stats.lognorm(0.2, scale=0.125)]
    expected = exact[0].logpdf(0.7) + exact[1].logpdf(0.1)
    np.testing.assert_allclose(prior.log_prob(theta), expected, rtol=1e-4)
    assert prior.log_prob(theta.at[1].set(-0.1)) == -np.inf


@pytest.mark.parametrize("bad", [-1.0, 1001.0, 0.5, np.nan, np.inf])
def test_impossible_counts_have_probability_zero(bad, log_prob):
    value, gradient = log_prob(jnp.array(THETAS[0]), sir().x_observed.at[4].set(bad))
    assert value == -np.inf
    assert np.isfinite(gradient).all()


def test_failed_solve_is_a_failed_simulation(log_prob):
    theta = jnp.array([np.inf, 0.1])
    assert np.isnan(sir().simulator(jax.random.key(0), theta)).all()
    value, gradient = log_prob(theta, sir().x_observed)
    assert value == -np.inf
    assert np.isfinite(gradient).all()


def test_cases_after_the_end_are_unlikely_and_not_impossible(log_prob):
    """i(17) = exp(-166.8) / 1e6 underflows, its logarithm does not."""
    value, gradient = log_prob(jnp.array([0.1, 10.0]), sir().x_observed)
    assert -1e6 < value < -1e4
    assert np.isfinite(gradient).all()


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        theta, x = jnp.array(THETAS[0]), sir().x_observed
        log_prob = jax.jit(jax.value_and_grad(lambda t: sir().log_likelihood(t, x)))
        _, gradient = log_prob(theta)
        for i, step in enumerate(1e-4 * jnp.eye(2)):
            difference = log_prob(theta + step)[0] - log_prob(theta - step)[0]
            np.testing.assert_allclose(gradient[i], difference / 2e-4, rtol=1e-3)


def test_counts_are_finite_wherever_the_prior_goes(simulate):
    theta_key, x_key = jax.random.split(jax.random.key(3))
    theta = jax.vmap(sir().prior.sample)(jax.random.split(theta_key, SIZE))
    assert np.isfinite(simulate(jax.random.split(x_key, SIZE), theta)).all()
