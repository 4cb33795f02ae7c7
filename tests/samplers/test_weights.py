"""Resampling by weight."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.samplers.weights import draw_weighted, resample


def test_every_index_comes_as_often_as_its_weight_rounded():
    weights = jax.random.dirichlet(jax.random.key(0), jnp.full(50, 0.3))
    index = resample(jax.random.key(1), weights, 1000)
    counts = np.bincount(index, minlength=50)
    assert np.all(np.diff(index) >= 0)
    assert np.all(np.abs(counts - 1000 * np.asarray(weights)) < 1.0 + 1e-3)


def test_what_has_no_weight_is_never_drawn():
    weights = jnp.zeros(100_003).at[jnp.array([0, 1, 70_000])].set(1 / 3)
    keys = jax.random.split(jax.random.key(2), 50)
    index = jax.vmap(lambda key: resample(key, weights, 1_000))(keys)
    assert set(np.unique(index)) == {0, 1, 70_000}
    only_last = jnp.zeros(10).at[9].set(1.0)
    assert np.all(resample(jax.random.key(3), only_last, 20) == 9)


def test_draws_are_in_random_order_and_counted_by_kish():
    z = jnp.arange(100.0)[:, None]
    weights = jnp.full(100, 0.01)
    draws, ess = draw_weighted(jax.random.key(4), z, weights, 100)
    assert sorted(draws[:, 0].tolist()) == z[:, 0].tolist()
    assert np.any(np.diff(draws[:, 0]) < 0)
    np.testing.assert_allclose(ess, 100, rtol=1e-5)
    halves = jnp.where(jnp.arange(100) < 50, 0.02, 0.0)
    np.testing.assert_allclose(draw_weighted(jax.random.key(5), z, halves, 80)[1], 50)
    np.testing.assert_allclose(draw_weighted(jax.random.key(6), z, halves, 20)[1], 20)
