"""Other things as networks: flatten, NNX and linen modules, plain pairs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import sbijax as sj
from sbijax.networks import flatten, from_nnx


def test_flatten_joins_the_leaves():
    x = {"b": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "a": jnp.array(0.0)}
    assert flatten().init(jax.random.key(0), x) == {}
    assert flatten().apply({}, x).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_from_nnx_equals_the_module():
    def make(rngs):
        return nnx.Sequential(
            nnx.Linear(2, 5, rngs=rngs), jnp.tanh, nnx.Linear(5, 3, rngs=rngs)
        )

    net = from_nnx(make)
    params = net.init(jax.random.key(0), jnp.zeros(2))
    x = jnp.array([1.0, -2.0])
    assert len(jax.tree.leaves(params)) == 4
    expected = make(nnx.Rngs(jax.random.key(0)))(x)
    np.testing.assert_allclose(net.apply(params, x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(net.apply)(params, x), expected, rtol=1e-6)


def test_from_nnx_parameters_are_a_plain_tree_and_learn():
    net = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    params = net.init(jax.random.key(0), jnp.zeros(2))
    assert type(params) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    grads = jax.grad(lambda p: jnp.sum(net.apply(p, jnp.ones(2)) ** 2))(params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    keys = jax.random.split(jax.random.key(1), 4)
    many = jax.vmap(lambda k: net.init(k, jnp.zeros(2)))(keys)
    assert many["kernel"].shape == (4, 2, 3)


class Pooled(nn.Module):
    """A linen module of one image `[4, 4, 1]`."""

    @nn.compact
    def __call__(self, image):
        pooled = nn.avg_pool(image[None], (2, 2), strides=(2, 2))
        return nn.relu(nn.Dense(3)(jnp.ravel(pooled)) + 1.0)


EMBEDDINGS = {
    "linen": Pooled(),
    "nnx": from_nnx(
        lambda rngs: nnx.Sequential(jnp.ravel, nnx.Linear(16, 3, rngs=rngs))
    ),
    "plain": sj.Network(
        init=lambda key, x: {"w": jax.random.normal(key, (3, 16))},
        apply=lambda params, x: params["w"] @ jnp.ravel(x),
    ),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_any_module_is_an_embedding(name):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    density = sj.densities.mdn(
        num_components=1, network=lambda n: sj.networks.mlp(n, hidden_sizes=(4,))
    )
    npe = sj.make_npe(prior, density=density, embedding=EMBEDDINGS[name])
    theta_key, x_key, init_key, loss_key = jax.random.split(jax.random.key(0), 4)
    theta = jax.random.normal(theta_key, (6,))
    x = jax.random.normal(x_key, (6, 4, 4, 1))
    sims = sj.make_simulations(theta, x)
    params = npe.init(init_key, sims)

    @jax.jit
    def run(net):
        return npe.loss(params._replace(net=net), loss_key, sims)

    loss, grads = jax.value_and_grad(run)(params.net)
    assert np.isfinite(loss)
    leaves = jax.tree.leaves(grads["embedding"])
    assert leaves
    assert all(np.any(leaf != 0) for leaf in leaves)
