"""What several test files share."""

import jax
import numpy as np

import sbijax as sj


def linear_data(num_rows=64, seed=0, noise=0.3, *, weighted=False):
    """theta = x_0 - x_1 / 2 + 0.7 + noise, with weights of 1 or around it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 2))
    theta = x @ np.array([1.0, -0.5]) + 0.7 + noise * rng.normal(size=num_rows)
    weight = rng.uniform(0.5, 2.0, num_rows) if weighted else None
    return sj.make_simulations(theta, x, weight)


def assert_same_bits(a, b):
    """Equal structures, dtypes and shapes, and not a bit of difference."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
