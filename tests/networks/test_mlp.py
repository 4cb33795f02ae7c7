"""MLP and residual MLP: shapes, inputs, gradients, bad sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.networks import mlp, resnet

MAKERS = {
    "mlp": lambda n, **options: mlp(n, hidden_sizes=(8, 8), **options),
    "mlp_linear": lambda n, **options: mlp(n, hidden_sizes=(), **options),
    "resnet": lambda n, **options: resnet(n, hidden_size=8, num_blocks=1, **options),
}


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_of_several_inputs(name):
    net = MAKERS[name](3)
    inputs = (jnp.ones((2, 2)), jnp.array(1.0), jnp.zeros(0))
    params = net.init(jax.random.key(0), *inputs)
    assert net.apply(params, *inputs).shape == (3,)


@pytest.mark.parametrize("name", MAKERS)
def test_pytree_input(name):
    net = MAKERS[name](2)
    x = {"series": jnp.arange(4.0), "scalar": jnp.array(2.0)}
    params = net.init(jax.random.key(0), x)
    out = net.apply(params, x)
    assert out.shape == (2,)
    moved = net.apply(params, x | {"scalar": jnp.array(3.0)})
    assert not np.allclose(out, moved)


def test_first_layer_is_a_linear_map_of_the_concatenation():
    net = mlp(4, hidden_sizes=())
    u, v = jnp.array([1.0, -2.0]), jnp.array([0.5])
    params = net.init(jax.random.key(0), u, v)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    matrix = np.concatenate(sorted(kernels, key=len, reverse=True))
    np.testing.assert_allclose(
        net.apply(params, u, v), np.array([1.0, -2.0, 0.5]) @ matrix, rtol=1e-5
    )


@pytest.mark.parametrize("name", MAKERS)
def test_vmap_with_a_shared_input_equals_a_loop(name):
    net = MAKERS[name](3)
    u, shared = jnp.arange(12.0).reshape(6, 2) / 6.0, jnp.array([1.0, -1.0, 0.5])
    params = net.init(jax.random.key(0), u[0], shared)
    mapped = jax.vmap(net.apply, in_axes=(None, 0, None))(params, u, shared)
    looped = jnp.stack([net.apply(params, row, shared) for row in u])
    np.testing.assert_allclose(mapped, looped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_gradients_reach_every_parameter(name):
    net = MAKERS[name](3)
    params = net.init(jax.random.key(0), jnp.ones(2), jnp.ones(3))
    grads = jax.grad(
        lambda p: jnp.sum(net.apply(p, jnp.array([1.0, -1.0]), jnp.ones(3)) ** 2)
    )(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_zero_output_starts_at_zero_and_learns(name):
    net = MAKERS[name](3, zero_output=True)
    params = net.init(jax.random.key(0), jnp.ones(2))
    assert net.apply(params, jnp.array([3.0, -4.0])).tolist() == [0.0, 0.0, 0.0]
    grads = jax.grad(lambda p: jnp.sum(net.apply(p, jnp.ones(2))))(params)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_residual_blocks_are_residual():
    # With the second layer of the block at zero, the block is the identity.
    one = resnet(2, hidden_size=4, num_blocks=1)
    params = one.init(jax.random.key(0), jnp.ones(3))
    deep = resnet(2, hidden_size=4, num_blocks=2)
    deep_params = deep.init(jax.random.key(0), jnp.ones(3))
    assert len(jax.tree.leaves(deep_params)) == len(jax.tree.leaves(params)) + 4


def test_activation_is_used():
    relu = mlp(2, hidden_sizes=(4,), activation=jax.nn.relu)
    tanh = mlp(2, hidden_sizes=(4,), activation=jnp.tanh)
    params = relu.init(jax.random.key(0), jnp.ones(3))
    x = jnp.array([1.0, -2.0, 0.5])
    assert not np.allclose(relu.apply(params, x), tanh.apply(params, x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: mlp(0),
        lambda: mlp(-1),
        lambda: mlp(2.5),
        lambda: mlp(2, hidden_sizes=(4, 0)),
        lambda: resnet(2, hidden_size=0),
        lambda: resnet(2, num_blocks=0),
        lambda: resnet(0),
    ],
)
def test_absurd_sizes(make):
    with pytest.raises(ValueError, match="sizes must be whole numbers >= 1"):
        make()
