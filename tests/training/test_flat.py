"""Parameters as one vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.training.flat import flatten


def test_a_tree_comes_back_to_the_bit():
    tree = {
        "a": jax.random.normal(jax.random.key(0), (3, 2)),
        "b": [jnp.float32(1.5), jnp.zeros((0, 4))],
        "c": jnp.arange(4, dtype=jnp.bfloat16) / 3,
    }
    flat = flatten(tree)
    assert flat.vector.shape == (11,)
    again = jax.jit(lambda flat: flat.tree())(flat)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for one, two in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert one.dtype == jnp.asarray(two).dtype
        np.testing.assert_array_equal(one, two)
    assert flatten({}).tree() == {}


def test_it_is_a_tree_of_one_leaf_that_maps():
    one, two = ({"w": jnp.full((2, 2), v), "b": jnp.full(3, v)} for v in (1.0, 2.0))
    total = jax.tree.map(jnp.add, flatten(one), flatten(two))
    np.testing.assert_array_equal(total.tree()["w"], 3.0)
    many = jax.vmap(flatten)(jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), one))
    assert many.vector.shape == (5, 7)
    assert jax.vmap(lambda flat: flat.tree()["b"])(many).shape == (5, 3)


def test_whole_numbers_are_refused():
    with pytest.raises(
        TypeError, match="floating-point arrays to be trained, got a leaf int32"
    ):
        flatten({"w": jnp.zeros(3), "n": jnp.arange(2)})
