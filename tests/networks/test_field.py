"""Networks of the field: zero at the start, smooth in the angle, alive everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.networks import field_resnet, field_transformer
from sbijax.networks.field import angle_features

FIELDS = {
    "resnet": lambda: field_resnet(hidden_size=16, num_blocks=2),
    "transformer": lambda: field_transformer(hidden_size=16, num_layers=1),
}
U, ANGLE, CONTEXT = jnp.array([0.3, -1.0, 2.0]), jnp.array(0.7), jnp.arange(4.0) / 4.0


def moved(net):
    params = jax.jit(net.init)(jax.random.key(0), U, ANGLE, CONTEXT)

    def move(leaf):
        return leaf + 0.2 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)

    return params, jax.tree.map(move, params)


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_starts_at_zero(name):
    # Where theta and x are jointly Gaussian nothing has to be learned.
    net = FIELDS[name]()
    start, _ = moved(net)
    assert not np.any(net.apply(start, U, ANGLE, CONTEXT))


@pytest.mark.parametrize("name", FIELDS)
def test_every_input_and_every_weight_counts(name):
    net = FIELDS[name]()
    _, params = moved(net)

    def total(params, u, angle, context):
        return jnp.sum(net.apply(params, u, angle, context) ** 2)

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(params, U, ANGLE, CONTEXT)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        # A bias of the keys shifts all scores of a query alike.
        assert np.any(leaf != 0) or ("key" in name and "bias" in name), name


def test_parameters_are_told_apart():
    net = FIELDS["transformer"]()
    _, params = moved(net)
    out = net.apply(params, jnp.ones(3), ANGLE, CONTEXT)
    assert len(np.unique(np.asarray(out).round(5))) == 3


def test_angle_features_are_finite_and_spread_over_noise_scales():
    angles = jnp.array([0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0, jnp.pi / 2])
    features, slopes = jax.vmap(
        lambda a: jax.jvp(angle_features, (a,), (jnp.ones(()),))
    )(angles)
    assert np.all(np.isfinite(features))
    assert np.all(np.isfinite(slopes))
    # One decade of noise moves the features about as far as the next.
    steps = np.linalg.norm(np.diff(features[2:6], axis=0), axis=1)
    assert steps.max() < 2.0 * steps.min()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: field_resnet(hidden_size=0), "sizes must be whole numbers"),
        (lambda: field_resnet(num_blocks=1.5), "sizes must be whole numbers"),
        (lambda: field_transformer(hidden_size=30), "multiple of num_heads=4"),
        (
            lambda: field_transformer(num_context_tokens=0),
            "sizes must be whole numbers",
        ),
    ],
)
def test_bad_sizes_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
