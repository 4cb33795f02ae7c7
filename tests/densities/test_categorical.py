"""Distributions of whole numbers: probabilities that add up, draws that follow them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.densities._categorical import categorical

SIZES = [2, 3, 2]
CELLS = list(itertools.product(*map(range, SIZES)))
CONTEXT = jnp.array([0.3, -0.8])
START = jnp.linspace(-1.0, 1.0, 9).reshape(3, 3)


@pytest.fixture(scope="module")
def moved():
    """A distribution with a network that is not at its start."""
    choice = categorical(SIZES, hidden_size=8)
    leaves, structure = jax.tree.flatten(choice.init(jax.random.key(0), CONTEXT))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.5 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return choice, jax.tree.unflatten(structure, leaves)


def probability_of(choice, net, cell):
    value = choice.log_prob(net, jnp.array(cell, jnp.float32), CONTEXT, START)
    return float(jnp.exp(value))


def test_probabilities_add_up_to_one(moved):
    total = sum(probability_of(*moved, cell) for cell in CELLS)
    assert abs(total - 1.0) < 1e-5


def test_it_starts_from_the_logits_given():
    choice = categorical(SIZES)
    net = choice.init(jax.random.key(0), CONTEXT)
    for cell in CELLS:
        expected = 1.0
        for d, (value, size) in enumerate(zip(cell, SIZES, strict=True)):
            expected *= float(jax.nn.softmax(START[d, :size])[value])
        assert abs(probability_of(choice, net, cell) - expected) < 1e-6


def test_draws_follow_the_probabilities(moved):
    choice, net = moved
    num = 20_000
    keys = jax.random.split(jax.random.key(2), num)
    draw = jax.jit(jax.vmap(lambda k: choice.sample(net, k, CONTEXT, START)))
    y = np.asarray(draw(keys))
    for cell in CELLS:
        p = probability_of(choice, net, cell)
        share = np.mean(np.all(y == cell, axis=1))
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / num)


def test_an_entry_depends_on_those_before_it(moved):
    choice, net = moved

    def share(first):
        """P(y_2 = 1 | y_0 = first)."""
        cells = [cell for cell in CELLS if cell[0] == first]
        mass = np.array([probability_of(choice, net, cell) for cell in cells])
        return mass[[cell[2] == 1 for cell in cells]].sum() / mass.sum()

    assert abs(share(0) - share(1)) > 1e-3
