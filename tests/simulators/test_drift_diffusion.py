"""Drift diffusion: the density against closed forms, the draws against it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.simulators import drift_diffusion
from sbijax.simulators.drift_diffusion import _SWITCH, _log_long, _log_short

THETAS = [
    {"drift": 1.2, "boundary": 1.5, "bias": 0.5, "delay": 0.3},
    {"drift": -1.8, "boundary": 2.0, "bias": 0.35, "delay": 0.5},
    {"drift": 0.0, "boundary": 0.6, "bias": 0.7, "delay": 1.0},
]
NAMES = ["ahead", "behind", "level"]


def density_on_grid(theta, num=20_001):
    """Density of both choices on a grid of decision times."""
    time = np.linspace(0.0, 8.0 * theta["boundary"] ** 2, num)[1:]
    log_likelihood = jax.jit(drift_diffusion().log_likelihood)
    score = jax.vmap(lambda c, t: log_likelihood(theta, {"choice": c, "time": t}))
    shifted = jnp.asarray(time + theta["delay"])
    return time, np.stack(
        [np.exp(np.asarray(score(jnp.full(num - 1, c), shifted))) for c in (0.0, 1.0)]
    )


@pytest.mark.parametrize("theta", THETAS, ids=NAMES)
def test_density_has_the_closed_form_probability_and_mean(theta):
    time, f = density_on_grid(theta)
    step = time[1] - time[0]
    v, a, w = theta["drift"], theta["boundary"], theta["bias"]
    if v:
        p = (1 - np.exp(-2 * v * a * w)) / (1 - np.exp(-2 * v * a))
        mean = a * (p - w) / v  # optional stopping of z - v t
    else:
        p, mean = w, a**2 * w * (1 - w)
    lower, upper = f.sum(axis=1) * step
    np.testing.assert_allclose([lower, upper], [1 - p, p], atol=2e-3)
    np.testing.assert_allclose(np.sum(f * time) * step, mean, rtol=5e-3)


@pytest.mark.parametrize("w", [0.3, 0.5, 0.7])
def test_both_series_agree_where_they_meet(w):
    for u in (0.7 * _SWITCH, _SWITCH, 1.5 * _SWITCH):
        short, long = _log_short(jnp.array(u), w), _log_long(jnp.array(u), w)
        np.testing.assert_allclose(short, long, atol=2e-5)


@pytest.mark.parametrize("theta", THETAS, ids=NAMES)
def test_draws_follow_the_density(theta):
    num = 20_000
    keys = jax.random.split(jax.random.key(0), num)
    x = jax.jit(jax.vmap(lambda k: drift_diffusion().simulator(k, theta)))(keys)
    time, f = density_on_grid(theta)
    cdf = np.cumsum(f, axis=1) * (time[1] - time[0])
    decision = np.asarray(x["time"], float) - theta["delay"]
    for choice in (0, 1):
        chosen = np.asarray(x["choice"]) == choice
        for share in (0.1, 0.5, 0.9):
            end = np.interp(share * cdf[choice, -1], cdf[choice], time)
            p = share * cdf[choice, -1]
            found = np.mean(chosen & (decision < end))
            assert abs(found - p) < 5 * np.sqrt(p * (1 - p) / num) + 2e-3


def test_impossible_data_have_no_density():
    log_likelihood, theta = drift_diffusion().log_likelihood, THETAS[0]
    grad = jax.grad(log_likelihood)
    for x in (
        {"choice": 1.0, "time": 0.2},
        {"choice": 1.0, "time": -1.0},
        {"choice": 0.5, "time": 1.0},
        {"choice": 2.0, "time": 1.0},
    ):
        assert log_likelihood(theta, x) == -jnp.inf
        grads = jax.tree.leaves(grad(theta, x))
        assert np.all(np.isfinite(np.stack(grads)))
