"""Mixed densities: probabilities that add up, draws that follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax import networks
from sbijax.densities import maf, mdn, mixed

CONTEXT = jnp.array([0.3, -0.8])


def make(num_categories, num_rest):
    density = mixed(
        mdn(num_components=1),
        num_categories=num_categories,
        network=lambda size: networks.mlp(size, hidden_sizes=(8,)),
    )
    y = jnp.zeros(len(num_categories) + num_rest)
    return density, density.init(jax.random.key(0), y, CONTEXT)


def test_probabilities_and_densities_add_up_to_one():
    density, net = make([2, 3], 1)
    grid = jnp.linspace(-12.0, 12.0, 1201)
    a, b, c = jnp.meshgrid(jnp.arange(2.0), jnp.arange(3.0), grid, indexing="ij")
    y = jnp.stack([a, b, c], axis=-1).reshape(-1, 3)
    log_prob = jax.jit(jax.vmap(lambda y: density.log_prob(net, y, CONTEXT)))(y)
    total = float(jnp.sum(jnp.exp(log_prob))) * float(grid[1] - grid[0])
    assert abs(total - 1.0) < 1e-3


def test_draws_follow_the_probabilities():
    density, net = make([2, 3], 0)
    num = 20_000
    y = np.asarray(density.sample(net, jax.random.key(1), CONTEXT, shape=(num, 2)))
    cells = [(i, j) for i in range(2) for j in range(3)]
    for cell in cells:
        p = float(jnp.exp(density.log_prob(net, jnp.array(cell, float), CONTEXT)))
        share = np.mean(np.all(y == cell, axis=1))
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / num)


def test_the_rest_depends_on_the_discrete_entries():
    density, net = make([2], 1)
    y = density.sample(net, jax.random.key(2), CONTEXT, shape=(4_000, 2))
    for value in (0.0, 1.0):
        rest = np.asarray(y[y[:, 0] == value, 1])
        grid = jnp.linspace(-12.0, 12.0, 1201)
        pairs = jnp.stack([jnp.full_like(grid, value), grid], axis=1)
        p = jnp.exp(jax.vmap(lambda y: density.log_prob(net, y, CONTEXT))(pairs))
        mean = float(jnp.sum(p * grid) / jnp.sum(p))
        assert abs(rest.mean() - mean) < 5 * rest.std() / len(rest) ** 0.5


@pytest.mark.parametrize("bad", [-1.0, 2.0, 0.5, jnp.nan, jnp.inf])
def test_other_values_are_impossible(bad):
    density, net = make([2], 0)
    log_prob, grad = jax.value_and_grad(
        lambda net: density.log_prob(net, jnp.array([bad]), CONTEXT)
    )(net)
    assert log_prob == -jnp.inf
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grad))


def test_bad_configuration_is_refused():
    with pytest.raises(ValueError, match="discrete entries"):
        mixed(maf(), num_categories=[])
    with pytest.raises(ValueError, match="num_categories"):
        mixed(maf(), num_categories=[0])
    with pytest.raises(TypeError, match="density"):
        mixed(None, num_categories=[2])
