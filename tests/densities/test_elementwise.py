"""Elementwise maps: inverse, slope, tails, and distrax's spline as an oracle."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.densities import affine, spline

RNG = np.random.default_rng(0)
MAPS = {
    "affine": affine(),
    "spline": spline(),
    "spline_small": spline(num_bins=2, bound=1.0),
    "spline_wide": spline(num_bins=16, bound=10.0),
}
NUM = 400


def inputs(name, scale=1.0):
    num_params = MAPS[name].num_params
    y = jnp.asarray(RNG.normal(size=NUM) * 4.0, jnp.float32)
    params = jnp.asarray(RNG.normal(size=(NUM, num_params)) * scale, jnp.float32)
    return y, params


@pytest.mark.parametrize("name", MAPS)
def test_zeros_are_the_identity(name):
    y, params = inputs(name)
    z, log_slope = MAPS[name].forward(y, jnp.zeros_like(params))
    np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_slope, 0.0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", MAPS)
def test_inverse(name, scale):
    y, params = inputs(name, scale)
    z, log_slope = jax.jit(MAPS[name].forward)(y, params)
    back = jax.jit(MAPS[name].inverse)(z, params)
    # Where the slope is s, rounding of z by eps |z| moves y by eps |z| / s.
    slack = 1e-5 * (1.0 + np.abs(z)) * (1.0 + np.exp(-np.asarray(log_slope)))
    assert np.all(np.abs(back - y) < slack + 1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", MAPS)
def test_log_slope_is_that_of_autodiff(name, scale):
    y, params = inputs(name, scale)

    def one(y, params):
        return MAPS[name].forward(y[None], params[None])[0][0]

    slope = jax.jit(jax.vmap(jax.grad(one)))(y, params)
    _, log_slope = MAPS[name].forward(y, params)
    assert np.all(slope > 0)
    np.testing.assert_allclose(log_slope, np.log(slope), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_monotone(name):
    _, params = inputs(name, 2.0)
    y = jnp.linspace(-12.0, 12.0, 500)
    for row in params[:5]:
        z, _ = MAPS[name].forward(y, jnp.broadcast_to(row, (500, row.size)))
        assert np.all(np.diff(z) > -1e-5)


@pytest.mark.parametrize("name", ["spline", "spline_small", "spline_wide"])
def test_spline_is_the_identity_outside_and_smooth_at_the_bound(name):
    bound = {"spline": 5.0, "spline_small": 1.0, "spline_wide": 10.0}[name]
    _, params = inputs(name, 0.5)
    for value in (-3 * bound, 3 * bound, 1e20, -1e20):
        y = jnp.full(NUM, value)
        z, log_slope = MAPS[name].forward(y, params)
        assert np.all(z == y)
        assert np.all(log_slope == 0)
        assert np.all(MAPS[name].inverse(y, params) == y)
    for side in (-1.0, 1.0):
        y = jnp.full(NUM, side * bound * (1.0 - 1e-6))
        z, log_slope = MAPS[name].forward(y, params)
        np.testing.assert_allclose(z, y, atol=1e-3 * bound)
        np.testing.assert_allclose(log_slope, 0.0, atol=1e-2)


@pytest.mark.parametrize("name", MAPS)
def test_extreme_parameters_stay_finite(name):
    y, params = inputs(name)
    for factor in (30.0, 1e4):
        z, log_slope = MAPS[name].forward(y, factor * params)
        assert np.all(np.isfinite(z))
        assert np.all(np.isfinite(log_slope))
        assert np.all(np.isfinite(MAPS[name].inverse(y, factor * params)))


@pytest.mark.parametrize("name", MAPS)
def test_gradients_reach_the_parameters(name):
    y, params = inputs(name)

    def total(params):
        z, log_slope = MAPS[name].forward(y, params)
        return jnp.sum(z**2) + jnp.sum(log_slope)

    grads = jax.grad(total)(params)
    assert np.all(np.isfinite(grads))
    assert np.all(np.any(grads != 0, axis=0))
    inverse_grads = jax.grad(lambda p: jnp.sum(MAPS[name].inverse(y, p)))(params)
    assert np.all(np.isfinite(inverse_grads))


def test_edges_between_bins():
    # Equal bins have their edges at whole numbers: each belongs to one bin.
    f = spline(num_bins=10, bound=5.0)
    y = jnp.arange(-5.0, 5.5, 1.0)
    params = jnp.asarray(RNG.normal(size=f.num_params), jnp.float32)
    params = params.at[:10].set(0.0)
    params = jnp.broadcast_to(params, (len(y), f.num_params))
    z, log_slope = f.forward(y, params)
    above, log_slope_above = f.forward(y + 1e-4, params)
    np.testing.assert_allclose(z, above, atol=3e-3)
    np.testing.assert_allclose(log_slope, log_slope_above, atol=3e-2)


@pytest.mark.parametrize(("num_bins", "bound"), [(8, 5.0), (4, 2.0)])
def test_spline_equals_distrax(num_bins, bound):
    # distrax takes the smallest bin in units of y, and one slope for each knot
    # including the outer two, which its identity boundary overrides.
    f = spline(num_bins=num_bins, bound=bound)
    rows = jnp.asarray(RNG.normal(size=(NUM, f.num_params)) * 1.5, jnp.float32)
    y = jnp.asarray(RNG.uniform(-1.2 * bound, 1.2 * bound, NUM), jnp.float32)
    sizes, slopes = rows[:, : 2 * num_bins], rows[:, 2 * num_bins :]
    oracle = distrax.RationalQuadraticSpline(
        jnp.concatenate([sizes, jnp.pad(slopes, ((0, 0), (1, 1)))], axis=1),
        range_min=-bound,
        range_max=bound,
        boundary_slopes="identity",
        min_bin_size=2 * bound * 1e-3,
        min_knot_slope=1e-3,
    )
    z, log_slope = f.forward(y, rows)
    expected, expected_log_slope = oracle.forward_and_log_det(y)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_slope, expected_log_slope, rtol=1e-3, atol=1e-3)
    inverse, _ = oracle.inverse_and_log_det(y)
    np.testing.assert_allclose(f.inverse(y, rows), inverse, rtol=1e-3, atol=1e-3)


def test_affine_values():
    # z = (y - m) exp(-s): m = 1, s = log 2 up to the soft bound on s.
    params = jnp.array([[1.0, np.log(2.0)]])
    z, log_slope = affine(max_log_scale=1e3).forward(jnp.array([5.0]), params)
    np.testing.assert_allclose(z, 2.0, rtol=1e-5)
    np.testing.assert_allclose(log_slope, -np.log(2.0), rtol=1e-5)
    _, bounded = affine(max_log_scale=3.0).forward(jnp.array([5.0]), 1e3 * params)
    np.testing.assert_allclose(bounded, -3.0, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: spline(num_bins=1),
        lambda: spline(num_bins=-3),
        lambda: spline(bound=0.0),
        lambda: spline(bound=-1.0),
        lambda: spline(bound=float("nan")),
        lambda: spline(bound=float("inf")),
        # Bins have a smallest size of a thousandth of the interval.
        lambda: spline(num_bins=1_000),
    ],
)
def test_absurd_splines(make):
    with pytest.raises(ValueError, match="a spline needs|num_bins must be at least 2"):
        make()
    with pytest.raises(TypeError, match="num_bins must be an integer, got 4.0"):
        spline(num_bins=4.0)
    with pytest.raises(ValueError, match="gain of a spline"):
        spline(gain=0.0)


def test_gain_multiplies_the_parameters():
    slow, fast = spline(gain=0.1), spline()
    y = jnp.linspace(-4.0, 4.0, 20)
    params = jnp.asarray(RNG.normal(size=(20, fast.num_params)), jnp.float32)
    for one, other in zip(
        slow.forward(y, params), fast.forward(y, 0.1 * params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("y", [-1.25, 0.0, 2.5])
def test_gradient_on_a_knot_is_the_slope(y):
    f = spline()
    params = jnp.zeros((1, f.num_params))
    slope = jax.grad(lambda y: f.forward(y[None], params)[0][0])(jnp.float32(y))
    assert slope == pytest.approx(1.0, abs=1e-4)
    slope = jax.grad(lambda z: f.inverse(z[None], params)[0])(jnp.float32(y))
    assert slope == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("scale", [3.0, 30.0, 300.0])
def test_inverse_of_steep_knots_around_flat_bins(scale):
    """The error of z(y(z)) over what rounding y alone makes of it."""
    f = spline()
    rng = np.random.default_rng(3)
    params = jnp.asarray(scale * rng.normal(size=(5_000, f.num_params)), jnp.float32)
    z = jnp.asarray(rng.uniform(-4.9, 4.9, 5_000), jnp.float32)
    back, log_slope = f.forward(f.inverse(z, params), params)
    error = np.abs(back - z) / (1.0 + np.exp(log_slope))
    assert error.max() < 1e-4
