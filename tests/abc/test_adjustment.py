"""Regression adjustment of accepted particles, and summaries that regress."""

import jax.numpy as jnp
import numpy as np
import pytest

from sbijax import abc
from sbijax.abc.adjustment import epanechnikov
from sbijax.abc.summaries import as_summary


def accepted(seed, num=4_000):
    """Summaries around 0, noise, and unequal weights."""
    rng = np.random.default_rng(seed)
    s, noise = rng.uniform(-1.0, 1.0, (num, 2)), rng.normal(size=num)
    weights = rng.uniform(size=num)
    return s, noise, weights / weights.sum()


def call(adjustment, z, s, weights):
    arrays = (jnp.asarray(a, jnp.float32) for a in (z, s, [0.2, -0.1], weights))
    return np.asarray(adjustment(*arrays), float)


def test_linear_adjustment_is_weighted_least_squares():
    s, noise, weights = accepted(0)
    z = (1.0 + s @ [2.0, -3.0] + 0.1 * noise)[:, None]
    design = np.column_stack([np.ones(len(s)), s])
    root = np.sqrt(weights)[:, None]
    slope = np.linalg.lstsq(root * design, root * z, rcond=None)[0][1:]
    expected = z - (s - [0.2, -0.1]) @ slope
    found = call(abc.linear_adjustment(ridge=1e-7), z, s, weights)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_nonlinear_adjustment_moves_mean_and_scale():
    s, noise, weights = accepted(1)
    scale = np.exp(s[:, 0])
    z = (np.sin(2.0 * s[:, 1]) + 0.1 * scale * noise)[:, None]
    found = call(abc.nonlinear_adjustment(), z, s, weights)
    mean = weights @ found[:, 0]
    spread = np.sqrt(weights @ (found[:, 0] - mean) ** 2)
    assert abs(mean - np.sin(-0.2)) < 0.04
    assert abs(spread / (0.1 * np.exp(0.2)) - 1.0) < 0.1
    # The plain regression leaves the mean over all scales.
    plain = call(abc.linear_adjustment(), z, s, weights)[:, 0]
    assert np.sqrt(weights @ (plain - weights @ plain) ** 2) > 1.15 * spread


def test_rows_without_weight_have_no_effect():
    s, noise, weights = accepted(2, 300)
    z = (s @ [2.0, -3.0] + 0.1 * noise)[:, None]
    weights[:50] = 0.0
    weights /= weights.sum()
    spoiled, bad = z.copy(), s.copy()
    spoiled[:50], bad[:50] = np.nan, np.inf
    for adjustment in (abc.linear_adjustment(), abc.nonlinear_adjustment()):
        clean = call(adjustment, z, s, weights)[50:]
        np.testing.assert_allclose(
            call(adjustment, spoiled, bad, weights)[50:], clean, rtol=1e-4
        )


def test_epanechnikov():
    weights = jnp.array([0.5, 0.25, 0.25, 0.0])
    distances = jnp.array([0.0, 1.0, 2.0, jnp.inf])
    found = epanechnikov(weights, distances)
    np.testing.assert_allclose(found, [0.5 / 0.6875, 0.1875 / 0.6875, 0.0, 0.0])
    np.testing.assert_allclose(epanechnikov(weights, jnp.zeros(4)), weights)


def test_semi_automatic_is_the_posterior_mean_of_a_linear_model():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(5_000, 1))
    x = z + 0.5 * rng.normal(size=(5_000, 8))
    summary = abc.semi_automatic(lambda x: x)
    stats = summary.fit(jnp.asarray(z), jnp.asarray(x), jnp.ones(5_000))
    found = summary.apply(stats, jnp.full(8, 0.6))
    assert abs(float(found[0]) - 0.6 * 8.0 / (8.0 + 0.25)) < 0.05


@pytest.mark.parametrize(
    ("run", "error", "match"),
    [
        (
            lambda: abc.linear_adjustment(ridge=0.0),
            ValueError,
            "ridge must be positive",
        ),
        (lambda: abc.nonlinear_adjustment(num_units=0), ValueError, "num_units"),
        (lambda: abc.semi_automatic(3), TypeError, "features must be a function"),
        (lambda: as_summary("mean"), TypeError, "summary must be a Summary"),
    ],
)
def test_bad_input(run, error, match):
    with pytest.raises(error, match=match):
        run()
