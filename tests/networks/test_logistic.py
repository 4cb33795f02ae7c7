"""Logistic regression: the maximum of its objective, the coefficients of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from sbijax.networks.logistic import fit_logistic, to_logits

SIZES = [2, 4, 3]


def draw(num, num_features=3, seed=0, scale=1.0):
    """Features, the logits' coefficients, and whole numbers that follow them."""
    key_f, key_b, key_y = jax.random.split(jax.random.key(seed), 3)
    f = jax.random.normal(key_f, (num, num_features))
    b = scale * jax.random.normal(key_b, (len(SIZES), max(SIZES), num_features + 1))
    logits = jax.vmap(lambda row: to_logits(b, row))(f)
    exists = jnp.arange(max(SIZES)) < jnp.array(SIZES)[:, None]
    y = jax.random.categorical(key_y, jnp.where(exists, logits, -jnp.inf))
    return f, b, y.astype(f.dtype)


def penalised(coefficients, f, y, weight):
    """The objective, entry by entry and value by value."""
    total = -0.5 * jnp.sum(coefficients**2)
    for d, size in enumerate(SIZES):
        scores = coefficients[d, :size, 0] + f @ coefficients[d, :size, 1:].T
        log_p = scores - jax.nn.logsumexp(scores, axis=1, keepdims=True)
        chosen = jnp.take_along_axis(log_p, y[:, d : d + 1].astype(int), axis=1)
        total = total + jnp.sum(weight * chosen[:, 0])
    return total


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
def test_the_fit_is_the_maximum(scale):
    # The last one all but separates its values.
    f, _, y = draw(500, scale=scale)
    weight = jnp.linspace(0.0, 2.0, 500)
    fitted = jax.jit(fit_logistic, static_argnums=3)(f, y, weight, tuple(SIZES))
    shape = fitted.shape
    slope = jax.jit(
        jax.value_and_grad(lambda b: -penalised(b.reshape(shape), f, y, weight))
    )
    best = scipy.optimize.minimize(
        lambda b: tuple(np.asarray(a, float) for a in slope(b)),
        np.zeros(fitted.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2_000},
    )
    assert penalised(fitted, f, y, weight) > -best.fun - 1.0  # nats of 500 rows


def test_it_finds_the_coefficients():
    f, true, y = draw(50_000)
    fitted = fit_logistic(f, y, jnp.ones(len(f)), SIZES)
    for d, size in enumerate(SIZES):
        # A constant over the values of an entry has no effect.
        gaps = [np.asarray(b[d, :size] - b[d, :1]) for b in (true, fitted)]
        assert np.max(np.abs(gaps[0] - gaps[1])) < 0.12  # five standard errors


def test_what_does_not_count_has_no_effect():
    f, _, y = draw(300)
    expected = fit_logistic(f[100:], y[100:], jnp.ones(200), SIZES)
    assert not np.any(expected[0, 2:])  # values that do not exist
    weight = jnp.ones(300).at[:100].set(0.0)
    junk = fit_logistic(f.at[:100].set(9.0), y, weight, SIZES)
    np.testing.assert_allclose(junk, expected, atol=1e-4)
    missing = fit_logistic(f, y.at[:100].set(7.0), jnp.ones(300), SIZES)
    np.testing.assert_allclose(missing, expected, atol=1e-4)
    small = fit_logistic(f[100:], y[100:], jnp.full(200, 1e-3), SIZES)
    np.testing.assert_allclose(small, expected, atol=1e-4)


def test_of_very_many_features_the_shares_are_left():
    f, _, y = draw(200, num_features=600)
    fitted = fit_logistic(f, y, jnp.ones(200), SIZES)
    assert fitted.shape == (3, 4, 601)
    p = jax.nn.softmax(to_logits(fitted, f[0])[0, :2])
    assert abs(float(p[1]) - float(jnp.mean(y[:, 0]))) < 0.02
