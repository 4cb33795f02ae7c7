"""Posterior predictive draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.diagnostics import posterior_predictive


def simulator(key, theta):
    noise = jax.random.normal(key, (2,))
    return {"x": theta["mean"] + theta["sd"] * noise, "mean": theta["mean"]}


def test_one_data_set_per_draw():
    num_draws = 4000
    theta = {"mean": jnp.arange(num_draws) / num_draws, "sd": jnp.full(num_draws, 2.0)}
    out = posterior_predictive(jax.random.key(0), simulator, theta)
    assert out["x"].shape == (num_draws, 2)
    np.testing.assert_array_equal(out["mean"], theta["mean"])
    noise = (out["x"] - theta["mean"][:, None]) / 2.0
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_numpy_input_and_failed_simulations_pass():
    def failing(key, theta):
        return jnp.where(theta > 0, theta, jnp.nan)

    out = posterior_predictive(jax.random.key(0), failing, np.array([1.0, -1.0]))
    np.testing.assert_array_equal(out, [1.0, np.nan])


def test_second_call_does_not_retrace():
    traces = []

    def counting(key, theta):
        traces.append(1)
        return theta

    for seed in range(2):
        posterior_predictive(jax.random.key(seed), counting, jnp.zeros(5))
    assert len(traces) == 1


def test_bad_input_is_refused():
    key = jax.random.key(0)
    theta = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    with pytest.raises(ValueError, match=r"one length S, got \{a: float32\[3\]"):
        posterior_predictive(key, simulator, theta)
    with pytest.raises(ValueError, match="one length S"):
        posterior_predictive(key, simulator, 1.0)
    with pytest.raises(TypeError, match="typed PRNG key"):
        posterior_predictive(7, simulator, jnp.zeros(3))
