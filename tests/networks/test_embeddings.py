"""Embeddings of series, images, sets and dicts: shapes, order, masks, input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import sbijax as sj
from sbijax.networks import (
    conv_1d,
    conv_2d,
    deep_set,
    fuse,
    gru,
    mlp,
    pretrained,
    transformer,
)
from sbijax.networks.convolution import _Conv, _low_frequencies
from sbijax.networks.tokens import to_tokens

SETS = {
    "deep_set": lambda: deep_set(4, hidden_size=16),
    "transformer": lambda: transformer(4, hidden_size=16, positional=False),
}
SERIES = {
    "gru": lambda: gru(4, hidden_size=16),
    "transformer": lambda: transformer(4, hidden_size=16),
}
GRIDS = {
    "conv_1d": (conv_1d(4, channels=(4, 8), hidden_size=16), (20,)),
    "conv_1d_channels": (conv_1d(4, channels=(4, 8), hidden_size=16), (21, 3)),
    "conv_2d": (conv_2d(4, channels=(4, 8), hidden_size=16), (12, 9)),
    "conv_2d_channels": (conv_2d(4, channels=(4, 8), hidden_size=16), (8, 8, 2)),
}
ROWS = {f"set_{k}": v for k, v in SETS.items()} | {
    f"series_{k}": v for k, v in SERIES.items()
}


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def trained_like(net, x):
    """Parameters away from where they start, so that no path is blocked."""
    params = jax.jit(net.init)(jax.random.key(0), x)
    return jax.tree.map(
        lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size).reshape(p.shape)), params
    )


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_shape(name):
    net = ROWS[name]()
    for x in (
        normal(1, (7,)),
        normal(1, (7, 2)),
        {"a": normal(1, (7, 2, 2)), "b": normal(2, (7,))},
        sj.make_trials(normal(1, (5, 2)), num_padded=7),
    ):
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        assert jax.eval_shape(net.apply, params, x).shape == (4,)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_any_shape(name):
    net, shape = GRIDS[name]
    x = normal(1, shape)
    params = trained_like(net, x)
    out = jax.jit(net.apply)(params, x)
    assert out.shape == (4,)
    # Every place of the grid counts.
    grads = jax.jit(jax.grad(lambda x: jnp.sum(net.apply(params, x) ** 2)))(x)
    assert np.mean(np.asarray(grads) != 0) > 0.9


@pytest.mark.parametrize("shape", [(9,), (8, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [2, 3])
def test_convolution_is_that_of_flax(shape, stride, width):
    window = (width,) * len(shape)
    ours, flax = _Conv(4, window, stride), nn.Conv(4, window, stride)
    x = normal(1, (*shape, 3))
    params = trained_like(ours, x)["params"]["Dense_0"]
    kernel = params["kernel"].reshape(*window, 3, 4)
    expected = flax.apply({"params": params | {"kernel": kernel}}, x)
    np.testing.assert_allclose(
        ours.apply({"params": {"Dense_0": params}}, x), expected, rtol=1e-4, atol=1e-4
    )


def test_lowest_frequencies_are_a_cosine_series():
    h = normal(1, (6, 3))
    place = (np.arange(6) + 0.5) * np.pi / 6
    waves = np.cos(np.outer(place, np.arange(6)))
    np.testing.assert_allclose(waves @ _low_frequencies(h, 0, 9), h, atol=1e-5)
    lowest = _low_frequencies(h, 0, 2)
    np.testing.assert_allclose(lowest[0], jnp.mean(h, axis=0), atol=1e-6)
    np.testing.assert_allclose(lowest, _low_frequencies(h, 0, 9)[:2], atol=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_order_of_a_set_has_no_effect(name):
    net, x = SETS[name](), normal(1, (9, 2))
    params = trained_like(net, x)
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(
        jax.jit(net.apply)(params, x[order]),
        jax.jit(net.apply)(params, x),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", SERIES)
def test_order_of_a_series_counts(name):
    net, x = SERIES[name](), normal(1, (9, 2))
    params = trained_like(net, x)
    assert not np.allclose(
        jax.jit(net.apply)(params, x[::-1]), jax.jit(net.apply)(params, x), atol=1e-3
    )


@pytest.mark.parametrize("name", ROWS)
def test_padding_has_no_effect(name):
    net, x = ROWS[name](), normal(1, (5, 2))
    exact = sj.make_trials(x)
    params = trained_like(net, exact)
    padded = sj.make_trials(x, num_padded=12)
    junk = padded._replace(x=padded.x.at[5:].set(jnp.nan))
    run = jax.jit(net.apply)
    expected = run(params, exact)
    np.testing.assert_allclose(run(params, padded), expected, rtol=1e-5, atol=1e-6)
    # What is hidden does not matter to the last bit.
    assert np.array_equal(run(params, junk), run(params, padded))
    grads = ravel_pytree(
        jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, junk))))(params)
    )[0]
    assert np.all(np.isfinite(grads))


@pytest.mark.parametrize("name", SETS)
def test_hidden_rows_of_a_set_may_be_anywhere(name):
    net, x = SETS[name](), normal(1, (6, 2))
    params = trained_like(net, sj.make_trials(x))
    mask = jnp.array([True, False, True, True, False, True])
    np.testing.assert_allclose(
        jax.jit(net.apply)(params, sj.Trials(x, mask)),
        jax.jit(net.apply)(params, sj.make_trials(x[mask])),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ROWS)
def test_number_of_rows_is_seen(name):
    # Twice the same rows mean the same average, but more certainty.
    net, x = ROWS[name](), jnp.ones((4, 1))
    params = trained_like(net, sj.make_trials(x))
    few = jax.jit(net.apply)(params, sj.make_trials(x[:2], num_padded=4))
    assert not np.allclose(
        few, jax.jit(net.apply)(params, sj.make_trials(x)), atol=1e-3
    )


@pytest.mark.parametrize("name", ROWS)
def test_gradients_reach_every_leaf(name):
    net, x = ROWS[name](), normal(1, (6, 2))
    params = trained_like(net, x)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x) ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        # A bias of the keys shifts all scores of a query alike.
        assert np.any(leaf != 0) or ("key" in name and "bias" in name), name


def test_fuse_joins_in_the_order_of_the_keys():
    net = fuse({"b": mlp(2), "a": gru(3)})
    x = {"a": normal(1, (5,)), "b": normal(2, (4,))}
    params = jax.jit(net.init)(jax.random.key(0), x)
    out = jax.jit(net.apply)(params, x)
    np.testing.assert_array_equal(out[:3], gru(3).apply(params["a"], x["a"]))
    np.testing.assert_array_equal(out[3:], mlp(2).apply(params["b"], x["b"]))


def test_pretrained_starts_from_the_parameters_given():
    module, x = nn.Dense(3), normal(1, (2,))
    params = module.init(jax.random.key(5), x)
    expected = module.apply(params, x)
    free, frozen = pretrained(module, params), pretrained(module, params, frozen=True)
    for net in (free, frozen):
        start = jax.jit(net.init)(jax.random.key(0), x)
        np.testing.assert_array_equal(net.apply(start, x), expected)
    assert jax.tree.leaves(frozen.init(jax.random.key(0), x)) == []
    moved = jax.tree.map(lambda p: p + 1.0, free.init(jax.random.key(0), x))
    assert not np.allclose(free.apply(moved, x), expected)


def test_tokens_of_trials():
    tokens = to_tokens(sj.make_trials(normal(1, (2, 3)), num_padded=4))
    assert tokens.values.shape == (4, 3)
    assert tokens.mask.tolist() == [True, True, False, False]
    assert not np.any(tokens.values[2:])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: deep_set(0), ValueError, "sizes must be whole numbers"),
        (lambda: gru(3, num_layers=0), ValueError, "sizes must be whole numbers"),
        (lambda: conv_1d(3, channels=(4, 0)), ValueError, "sizes must be whole"),
        (lambda: transformer(3, hidden_size=30), ValueError, "multiple of num_heads=4"),
        (lambda: fuse({}), ValueError, "at least one network"),
        (lambda: fuse({"a": gru}), TypeError, r"networks\['a'\] must be a network"),
        (lambda: pretrained(gru, {}), TypeError, "network must be a network"),
    ],
)
def test_bad_settings_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("net", "x", "match"),
    [
        (deep_set(3), jnp.zeros(()), "leaves \\[T, ...\\] of one length"),
        (gru(3), {"a": jnp.zeros(3), "b": jnp.zeros(4)}, "of one length T"),
        (conv_1d(3), jnp.zeros(()), r"one array \[T\] or \[T, C\]"),
        (conv_2d(3), jnp.zeros(9), r"one array \[H, W\] or \[H, W, C\]"),
        (conv_2d(3), {"a": jnp.zeros((9, 9))}, r"one array \[H, W\]"),
        (fuse({"a": mlp(2)}), {"b": jnp.zeros(3)}, r"with the keys \['a'\]"),
        (fuse({"a": mlp(2)}), jnp.zeros(3), r"with the keys \['a'\]"),
    ],
)
def test_other_data_are_refused(net, x, match):
    with pytest.raises(ValueError, match=match):
        net.init(jax.random.key(0), x)
