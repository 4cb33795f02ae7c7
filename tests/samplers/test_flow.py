"""Samplers along a diffusion, on fields that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from scipy import integrate, stats

from sbijax.samplers import annealed_langevin, ode, sde
from sbijax.samplers.flow_density import log_density_of_flow

MEAN = np.array([1.0, -0.5])
COV = np.array([[0.3, 0.2], [0.2, 0.25]])


def field_of_mixture(weights, means, scales):
    """F of a mixture of isotropic normals: E[sin y - cos e | u]."""
    weights, means, scales = map(jnp.asarray, (weights, means, scales))

    def field(u, angle):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        variance = (cos * scales) ** 2 + sin**2
        away = u - cos * means
        log_part = jnp.log(weights) - 0.5 * jnp.sum(away**2, axis=1) / variance
        share = jax.nn.softmax(log_part - 0.5 * u.size * jnp.log(variance))
        gain = sin * cos * (scales**2 - 1.0) / variance
        return share @ (sin * means + gain[:, None] * away)

    return field


def normal_field(u, angle):
    """F of N(MEAN, COV)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    eye = jnp.eye(2)
    gain = sin * cos * (COV - eye) @ jnp.linalg.inv(cos**2 * COV + sin**2 * eye)
    return sin * MEAN + gain @ (u - cos * MEAN)


SAMPLERS = {
    "ode": ode(),
    "sde": sde(num_steps=400),
    "ddim": sde(num_steps=400, noise=0.0),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_of_a_normal(name):
    y, info = jax.jit(lambda key: SAMPLERS[name](key, normal_field, shape=(20_000, 2)))(
        jax.random.key(0)
    )
    y = np.asarray(y, float)
    # Four standard errors, and the error of 400 steps of first order.
    slack = 4 / 20_000**0.5 + (0.0 if name == "ode" else 0.01)
    np.testing.assert_allclose(y.mean(axis=0), MEAN, atol=slack)
    np.testing.assert_allclose(np.cov(y.T), COV, atol=slack)
    assert int(info.num_invalid) == int(info.num_failed) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_of_narrow_modes(name):
    # A hundredth of the prior's width, far apart, unequal.
    field = field_of_mixture([0.2, 0.8], [[-1.0], [1.0]], [0.01, 0.02])
    y, _ = jax.jit(lambda key: SAMPLERS[name](key, field, shape=(10_000, 1)))(
        jax.random.key(1)
    )
    y = np.asarray(y[:, 0], float)
    right = y > 0
    assert abs(right.mean() - 0.8) < 4 * (0.16 / 10_000) ** 0.5 + 0.005
    for side, mean, scale in ((~right, -1.0, 0.01), (right, 1.0, 0.02)):
        assert abs(y[side].mean() - mean) < 5 * scale / side.sum() ** 0.5 + 0.05 * scale
        assert abs(y[side].std() / scale - 1.0) < 0.07


def test_a_very_narrow_posterior_keeps_its_width():
    scale = 0.003
    field = field_of_mixture([1.0], [[1.0]], [scale])
    y, info = jax.jit(lambda key: ode()(key, field, shape=(4_000, 1)))(
        jax.random.key(7)
    )
    assert abs(np.std(np.asarray(y, float)) / scale - 1.0) < 0.07
    assert int(info.num_failed) == 0


def test_log_density_of_a_normal():
    y = jax.random.normal(jax.random.key(2), (50, 2))
    found = jax.jit(jax.vmap(lambda y: log_density_of_flow(normal_field, y)))(y)
    expected = multivariate_normal.logpdf(y, jnp.asarray(MEAN), jnp.asarray(COV))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_log_density_of_a_mixture_integrates_to_one():
    field = field_of_mixture([0.3, 0.7], [[-1.0], [0.5]], [0.1, 0.3])
    grid = np.linspace(-3.0, 3.0, 2_001)
    density = np.exp(
        jax.jit(jax.vmap(lambda y: log_density_of_flow(field, y)))(
            jnp.asarray(grid)[:, None]
        )
    )
    exact = 0.3 * stats.norm.pdf(grid, -1.0, 0.1) + 0.7 * stats.norm.pdf(grid, 0.5, 0.3)
    assert abs(np.trapezoid(density, grid) - 1.0) < 1e-3
    assert np.max(np.abs(density - exact)) < 1e-3 * exact.max()


@pytest.mark.parametrize("scale", [0.3, 0.1, 0.01])
def test_log_density_of_narrow_modes(scale):
    field = field_of_mixture([0.5, 0.5], [[-1.0], [1.0]], [scale, 2.0 * scale])
    offsets = np.linspace(-2.0, 2.0, 21)
    y = np.concatenate([-1.0 + scale * offsets, 1.0 + 2.0 * scale * offsets])
    y = y.astype(np.float32)
    found = jax.jit(jax.vmap(lambda y: log_density_of_flow(field, y)))(y[:, None])
    y = y.astype(float)  # the offsets as the function saw them
    expected = np.logaddexp(
        stats.norm.logpdf(y, -1.0, scale), stats.norm.logpdf(y, 1.0, 2.0 * scale)
    ) - np.log(2.0)
    error = np.abs(found - expected)
    assert np.median(error) < 1e-3
    assert np.max(error) < 0.05


def test_log_density_agrees_with_the_trace_of_the_jacobian():
    weights = jnp.array([[0.3, -1.0], [0.7, 0.5]])

    def field(u, angle):
        return jnp.sin(angle) * jnp.tanh(weights @ u)

    @jax.jit
    def slope(angle, state):
        jacobian = jax.jacfwd(field)(state[:2], angle)
        return jnp.append(-field(state[:2], angle), jnp.trace(jacobian))

    y = np.array([0.4, -0.8])
    path = integrate.solve_ivp(slope, (0.0, np.pi / 2), [*y, 0.0], rtol=1e-6, atol=1e-6)
    *end, total = path.y[:, -1]
    expected = stats.norm.logpdf(end).sum() - total
    assert abs(log_density_of_flow(field, jnp.asarray(y)) - expected) < 1e-4


def test_probes_estimate_the_density_without_bias():
    y = jnp.array([0.3, 0.1])
    exact = float(log_density_of_flow(normal_field, y))
    probes = jax.random.rademacher(jax.random.key(4), (4_000, 2), float)
    each = np.asarray(log_density_of_flow(normal_field, y, probes))
    error = each.std(ddof=1) / len(each) ** 0.5
    assert error > 0
    assert abs(each.mean() - exact) < 4 * error + 1e-3


def test_one_bad_draw_neither_spoils_nor_slows_the_rest():
    def field(u, angle):
        value = field_of_mixture([1.0], [[0.0]], [0.5])(u, angle)
        return jnp.where(u > 3.0, jnp.nan, value)

    def stiff(u, angle):
        value = field_of_mixture([1.0], [[0.0]], [0.5])(u, angle)
        return jnp.where(u > 3.0, value + 50.0 * jnp.sin(3_000.0 * angle), value)

    run = jax.jit(ode(), static_argnames=("field", "shape"))
    key = jax.random.key(5)
    plain, plain_info = run(
        key, field=field_of_mixture([1.0], [[0.0]], [0.5]), shape=(5_000, 1)
    )
    for other in (field, stiff):
        y, info = run(jax.random.clone(key), field=other, shape=(5_000, 1))
        same = np.isclose(y, plain, atol=0.02).mean()
        assert same > 0.99
        assert int(info.num_steps) <= 2 * int(plain_info.num_steps)
        assert int(info.num_failed) == 0
        assert int(info.num_invalid) == np.sum(~np.isfinite(y))


@pytest.mark.parametrize("num_trials", [1, 10, 100])
def test_langevin_on_a_product_of_normals(num_trials):
    # Weak, ordinary and strong trials: posteriors of one with these widths.
    widths = np.array([0.9, 0.3, 0.03])
    rng = np.random.default_rng(num_trials)
    of_data = 1.0 / widths**2 - 1.0
    xs = rng.normal(size=3) + rng.normal(size=(num_trials, 3)) / of_data**0.5
    means = jnp.asarray(of_data * xs * widths**2)
    turn = jnp.linalg.qr(jnp.asarray(rng.normal(size=(3, 3))))[0]

    def score(w, noise):
        return jnp.sum((means - w @ turn) / (widths**2 + noise**2), axis=0) @ turn.T

    def prior_score(w, noise):
        return -w / (1.0 + noise**2)

    start = jax.random.normal(jax.random.key(0), (20_000, 3))
    w, info = jax.jit(
        lambda key: annealed_langevin()(
            key, score, prior_score, start=start, num_trials=num_trials
        )
    )(jax.random.key(1))
    precision = 1.0 + num_trials * of_data
    expected = of_data * xs.sum(axis=0) / precision
    w = np.asarray(w @ turn, float)
    away = (w.mean(axis=0) - expected) * precision**0.5
    np.testing.assert_allclose(away, 0.0, atol=0.06)
    np.testing.assert_allclose(w.std(axis=0) * precision**0.5, 1.0, atol=0.03)
    assert (int(info.num_steps), int(info.num_invalid)) == (120, 0)


def test_langevin_keeps_the_modes_of_a_product():
    # Three trials, each with two modes; only one pair agrees in all of them.
    centres = jnp.array([[-1.0, 0.5], [0.5, 2.0], [0.5, -2.0]])

    def log_density(w, noise):
        away = w - centres
        return jnp.sum(jax.nn.logsumexp(-0.5 * away**2 / (0.1**2 + noise**2), axis=1))

    def score(w, noise):
        return jax.grad(lambda w: log_density(w[0], noise))(w)

    start = jax.random.normal(jax.random.key(0), (4_000, 1))
    w, _ = annealed_langevin()(
        jax.random.key(1),
        score,
        lambda w, noise: -w / (1.0 + noise**2),
        start=start,
        num_trials=3,
    )
    w = np.asarray(w[:, 0], float)
    # N(.5, .1)^3 / N(0, 1)^2 has mean 1.5 / 2.98 and precision 298.
    near = np.abs(w - 0.5) < 0.4
    assert near.mean() > 0.98
    assert abs(w[near].mean() - 0.5034) < 0.01
    assert abs(w[near].std() * 298**0.5 - 1.0) < 0.1


def test_too_few_steps_are_reported():
    y, info = ode(max_num_steps=2)(jax.random.key(6), normal_field, shape=(10, 2))
    assert int(info.num_failed) == 10
    assert int(info.num_steps) == 2
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ode(tolerance=0.0), ValueError, "tolerance must be positive"),
        (lambda: ode(tolerance="fine"), TypeError, "tolerance must be a positive"),
        (lambda: ode(max_num_steps=0), ValueError, "max_num_steps must be at least 1"),
        (lambda: sde(num_steps=0), ValueError, "num_steps must be at least 1"),
        (lambda: sde(noise=1.5), ValueError, "noise must lie between 0 and 1"),
        (lambda: sde(noise="much"), TypeError, "noise must be a number"),
        (lambda: annealed_langevin(num_levels=1), ValueError, "num_levels must be"),
        (lambda: annealed_langevin(step_size=2.0), ValueError, "step_size must be"),
        (lambda: annealed_langevin(min_noise=9.0), ValueError, "must be below max"),
    ],
)
def test_bad_settings_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
