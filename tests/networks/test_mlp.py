"""MLP and residual MLP: shapes, inputs, gradients, bad sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.networks import (
    conv_1d,
    deep_set,
    field_resnet,
    field_transformer,
    mlp,
    resnet,
    transformer,
)

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


WIDE = {
    "mlp": (mlp(256, hidden_sizes=(256, 256)), (jnp.zeros(256),)),
    "resnet": (resnet(256, hidden_size=256), (jnp.zeros(256), jnp.zeros(128))),
    "deep_set": (deep_set(256, hidden_size=256), (jnp.zeros((3, 256)),)),
    "conv_1d": (conv_1d(256, channels=(64, 128), hidden_size=256), (jnp.zeros(128),)),
    "transformer": (transformer(64, hidden_size=64, num_heads=2), (jnp.zeros((3, 9)),)),
    "field_resnet": (field_resnet(), (jnp.zeros(64), jnp.zeros(()), jnp.zeros(64))),
    "field_transformer": (
        field_transformer(),
        (jnp.zeros(64), jnp.zeros(()), jnp.zeros(64)),
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_weights_start_with_the_spread_that_keeps_the_scale_of_their_input(name):
    net, inputs = WIDE[name]
    params = jax.jit(net.init)(jax.random.key(0), *inputs)
    seen = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        place = jax.tree_util.keystr(path)
        if "kernel" in place and np.any(leaf):
            # Attention ends with [heads, H / heads, H].
            inputs_of_one = leaf.shape[:2] if "'out'" in place else leaf.shape[:1]
            sd = np.prod(inputs_of_one) ** -0.5
            error = 4 * sd / np.sqrt(2 * leaf.size)
            assert abs(np.std(leaf) - sd) < error, place
            assert abs(np.mean(leaf)) < 4 * sd / np.sqrt(leaf.size), place
            assert np.abs(leaf).max() < 2.3 * sd, place  # a truncated normal
            seen.append(np.ravel(leaf)[:16] / sd)
        elif "bias" in place:
            assert not np.any(leaf), place
        elif "scale" in place:
            np.testing.assert_array_equal(leaf, 1.0)
    numbers = np.sort(np.concatenate(seen))
    assert len(seen) > 2
    assert np.all(np.diff(numbers) > 0)  # no number is there twice
