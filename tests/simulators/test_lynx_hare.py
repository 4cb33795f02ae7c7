"""Tests of the lynx and hare task: its ODE, likelihood, gradients and priors."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from sbijax.base import SbijaxWarning
from sbijax.simulators import lynx_hare, simulate

module = importlib.import_module("sbijax.simulators.lynx_hare")

TYPICAL = {
    "alpha": 0.55,
    "beta": 0.028,
    "gamma": 0.8,
    "delta": 0.024,
    "hare_0": 34.0,
    "lynx_0": 5.9,
    "sigma_hare": 0.25,
    "sigma_lynx": 0.3,
}
# The solver cannot resolve an oscillation this fast in its 256 steps.
HOPELESS = {**TYPICAL, "alpha": 3e4, "gamma": 3e4}


def to_arrays(theta):
    return {name: jnp.asarray(value, float) for name, value in theta.items()}


def dynamic_part(theta):
    return jnp.stack([jnp.asarray(theta[name], float) for name in module._DYNAMIC])


def reference_log_populations(dynamic):
    """High-precision solution by scipy, `[21, 2]`."""
    alpha, beta, gamma, delta, hare_0, lynx_0 = np.asarray(dynamic, np.float64)

    def rates(t, z):
        return [(alpha - beta * z[1]) * z[0], (delta * z[0] - gamma) * z[1]]

    years = np.arange(21.0)
    solution = solve_ivp(
        rates, (0.0, 20.0), [hare_0, lynx_0], "DOP853", years, rtol=1e-11, atol=1e-14
    )
    return np.log(solution.y.T)


def test_observed_counts():
    x = np.asarray(lynx_hare().x_observed)
    assert x.shape == (21, 2)
    np.testing.assert_allclose(x[[0, 13, 20]], [[30, 4], [76.6, 19.5], [24.7, 8.6]])
    np.testing.assert_allclose(x.sum(0), [715.7, 423.5], rtol=1e-5)


def test_ode_against_scipy_near_the_data():
    dynamic = dynamic_part(TYPICAL)
    factors = jnp.exp(0.1 * jax.random.normal(jax.random.key(0), (20, 6)))
    solved = jax.jit(jax.vmap(module._log_populations))(dynamic * factors)
    for row, log_z in zip(dynamic * factors, solved, strict=True):
        np.testing.assert_allclose(log_z, reference_log_populations(row), atol=1e-3)


def test_ode_against_scipy_over_the_prior():
    task = lynx_hare()
    theta = jax.vmap(task.prior.sample)(jax.random.split(jax.random.key(1), 50))
    dynamic = jax.vmap(dynamic_part)(theta)
    solved = np.asarray(jax.jit(jax.vmap(module._log_populations))(dynamic))
    errors = [
        np.abs(log_z - reference_log_populations(row)).max()
        for row, log_z in zip(dynamic, solved, strict=True)
    ]
    # Violent draws lose digits; the error scales are around 0.4.
    assert np.median(errors) < 2e-3
    assert np.max(errors) < 0.1


def test_counts_are_log_normal_around_the_solution():
    theta, size = to_arrays(TYPICAL), 3000
    keys = jax.random.split(jax.random.key(2), size)
    xs = np.asarray(jax.jit(jax.vmap(lynx_hare().simulator, (0, None)))(keys, theta))
    errors = (np.log(xs) - reference_log_populations(dynamic_part(TYPICAL))) / [
        TYPICAL["sigma_hare"],
        TYPICAL["sigma_lynx"],
    ]
    assert stats.kstest(errors.ravel(), "norm").pvalue > 1e-3
    flat = errors.reshape(size, -1)
    correlation = np.corrcoef(flat.T) - np.eye(42)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(size)


def test_log_likelihood_against_scipy():
    task, theta = lynx_hare(), to_arrays(TYPICAL)
    median = np.exp(reference_log_populations(dynamic_part(TYPICAL)))
    sigma = np.array([TYPICAL["sigma_hare"], TYPICAL["sigma_lynx"]])
    x = np.asarray(task.x_observed, np.float64)
    expected = stats.lognorm(sigma, scale=median).logpdf(x).sum()
    np.testing.assert_allclose(task.log_likelihood(theta, x), expected, atol=2e-2)


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        task, x = lynx_hare(), np.asarray(lynx_hare().x_observed, np.float64)
        theta = to_arrays(TYPICAL)
        log_prob = jax.jit(lambda theta: task.log_likelihood(theta, x))
        forward = jax.jit(jax.jacfwd(log_prob))(theta)
        reverse = jax.jit(jax.grad(log_prob))(theta)
        for name, value in theta.items():
            step = 1e-5 * value
            above = log_prob({**theta, name: value + step})
            below = log_prob({**theta, name: value - step})
            difference = (above - below) / (2.0 * step)
            np.testing.assert_allclose(forward[name], difference, rtol=1e-4)
            np.testing.assert_allclose(reverse[name], forward[name], rtol=1e-9)


def test_second_derivatives_exist_and_are_symmetric():
    dynamic = dynamic_part(TYPICAL)

    def log_prob(dynamic):
        return jnp.sum(module._log_populations(dynamic) ** 2)

    hessian = np.asarray(jax.jit(jax.jacfwd(jax.grad(log_prob)))(dynamic))
    assert np.all(np.isfinite(hessian))
    scale = np.sqrt(np.abs(np.outer(np.diag(hessian), np.diag(hessian))))
    assert np.max(np.abs(hessian - hessian.T) / scale) < 1e-3


@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.grad])
def test_failed_solve_has_probability_zero_and_no_nan(differentiate):
    task, theta = lynx_hare(), to_arrays(HOPELESS)
    assert np.all(np.isnan(module._log_populations(dynamic_part(HOPELESS))))
    assert task.log_likelihood(theta, task.x_observed) == -np.inf
    gradient = differentiate(task.log_likelihood)(theta, task.x_observed)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def test_failed_solve_does_not_touch_its_neighbours():
    task = lynx_hare()
    rows = [to_arrays(TYPICAL), to_arrays(HOPELESS)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    log_probs = jax.vmap(task.log_likelihood, (0, None))(batch, task.x_observed)
    alone = task.log_likelihood(rows[0], task.x_observed)
    np.testing.assert_allclose(log_probs[0], alone, rtol=1e-4)
    assert log_probs[1] == -np.inf


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_impossible_counts_have_probability_zero(bad):
    task = lynx_hare()
    x = task.x_observed.at[3, 1].set(bad)
    value, gradient = jax.value_and_grad(task.log_likelihood)(to_arrays(TYPICAL), x)
    assert value == -np.inf
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def test_failed_solve_is_a_failed_simulation():
    task = lynx_hare()

    def simulator(key, theta):
        fast = theta["alpha"] > 1.5
        return task.simulator(
            key, {**theta, "gamma": jnp.where(fast, 3e5, theta["gamma"])}
        )

    with pytest.warns(SbijaxWarning, match="failed"):
        sims = simulate(jax.random.key(3), task.prior, simulator, 200)
    np.testing.assert_array_equal(sims.weight == 0.0, sims.theta["alpha"] > 1.5)


def test_few_prior_draws_fail_and_logarithms_are_finite():
    task = lynx_hare()
    sims = simulate(jax.random.key(4), task.prior, task.simulator, 2000)
    assert np.all(sims.weight == 1.0)
    assert np.all(np.isfinite(np.log(sims.x)))
    assert np.all(np.isfinite(jax.vmap(task.prior.to_vector)(sims.theta)))


def test_prior_is_the_one_of_the_case_study():
    prior = lynx_hare().prior
    theta = prior.sample(jax.random.key(5))
    rate, slow = (
        stats.truncnorm(-2.0, np.inf, 1.0, 0.5),
        stats.truncnorm(-1.0, np.inf, 0.05, 0.05),
    )
    population = stats.lognorm(1.0, scale=10.0)
    sigma = stats.lognorm(1.0, scale=np.exp(-1.0))
    exact = {
        "alpha": rate,
        "beta": slow,
        "gamma": rate,
        "delta": slow,
        "hare_0": population,
        "lynx_0": population,
        "sigma_hare": sigma,
        "sigma_lynx": sigma,
    }
    assert set(theta) == set(exact)
    expected = sum(exact[name].logpdf(float(theta[name])) for name in exact)
    np.testing.assert_allclose(prior.log_prob(theta), expected, atol=1e-3)
    for name in exact:
        outside = {**theta, name: jnp.array(-0.01)}
        assert prior.log_prob(outside) == -np.inf
