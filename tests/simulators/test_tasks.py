"""Tests of the built-in tasks: simulators against likelihoods, shapes, records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from sbijax.simulators import (
    bernoulli_glm,
    bernoulli_glm_raw,
    gaussian_linear,
    gaussian_linear_uniform,
    gaussian_mixture,
    lotka_volterra,
    lynx_hare,
    sir,
    slcp,
    slcp_distractors,
    two_moons,
)
from sbijax.simulators.task import task_factory

FACTORIES = [
    bernoulli_glm,
    bernoulli_glm_raw,
    gaussian_linear,
    gaussian_linear_uniform,
    gaussian_mixture,
    lotka_volterra,
    lynx_hare,
    sir,
    slcp,
    slcp_distractors,
    two_moons,
]
SHAPES = {
    "bernoulli_glm": (10, (10,)),
    "bernoulli_glm_raw": (10, (100,)),
    "gaussian_linear": (10, (10,)),
    "gaussian_linear_uniform": (10, (10,)),
    "gaussian_mixture": (2, (2,)),
    "lotka_volterra": (4, (20,)),
    "lynx_hare": (8, (21, 2)),
    "sir": (2, (10,)),
    "slcp": (5, (8,)),
    "slcp_distractors": (5, (100,)),
    "two_moons": (2, (2,)),
}
COUNTS = {"bernoulli_glm", "bernoulli_glm_raw", "sir"}  # some may be equal by chance
TASKS = [pytest.param(factory, id=factory.__name__) for factory in FACTORIES]


def draw_theta(task, seed=0):
    return task.prior.sample(jax.random.key(seed))


def draw_x(task, theta, size, seed=1):
    keys = jax.random.split(jax.random.key(seed), size)
    return jax.jit(jax.vmap(task.simulator, (0, None)))(keys, theta)


@pytest.mark.parametrize("factory", TASKS)
def test_name_and_shapes(factory):
    task = factory()
    num_dims, shape = SHAPES[task.name]
    theta = draw_theta(task)
    assert task.name == factory.__name__
    assert task.prior.num_dims == num_dims
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == num_dims
    assert task.simulator(jax.random.key(2), theta).shape == shape
    assert task.x_observed.shape == shape
    log_prob = task.log_likelihood(theta, task.x_observed)
    assert log_prob.shape == ()
    assert log_prob.dtype == jnp.float32


@pytest.mark.parametrize("factory", TASKS)
def test_discrete_leaves_have_the_values_that_are_declared(factory):
    task = factory()
    if task.num_categories is None:
        pytest.skip("all of x is continuous")
    theta_keys, x_keys = jax.random.split(jax.random.key(0), (2, 200))
    x = jax.vmap(task.simulator)(x_keys, jax.vmap(task.prior.sample)(theta_keys))
    sizes = jax.tree.leaves(task.num_categories)
    for leaf, size in zip(jax.tree.leaves(x), sizes, strict=True):
        assert not size or set(np.unique(leaf)) == set(range(size))


@pytest.mark.parametrize("factory", TASKS)
def test_same_record_each_time(factory):
    assert factory() is factory()


@pytest.mark.parametrize("factory", TASKS)
def test_first_call_inside_jit_leaks_no_tracer(factory):
    factory = task_factory(factory.__wrapped__)  # not called before

    def observed():
        return factory().x_observed

    with jax.checking_leaks():
        inside = jax.jit(observed)()
    task = factory()
    np.testing.assert_array_equal(task.x_observed, inside)
    assert np.isfinite(task.prior.log_prob(draw_theta(task)))


def test_a_task_made_in_double_precision_does_not_stay_so():
    factory = task_factory(slcp.__wrapped__)
    with jax.enable_x64(True):
        assert factory().x_observed.dtype == np.float64
    assert factory().x_observed.dtype == np.float32


@pytest.mark.parametrize("factory", TASKS)
def test_vmap_equals_loop_and_numpy_is_accepted(factory):
    task = factory()
    theta = jax.vmap(task.prior.sample)(jax.random.split(jax.random.key(4), 3))
    # One set of keys for each use: a consumed key cannot be passed again.
    batch, single = (jax.random.split(jax.random.key(3), 3) for _ in range(2))
    xs = jax.jit(jax.vmap(task.simulator))(batch, theta)
    log_probs = jax.jit(jax.vmap(task.log_likelihood))(theta, xs)
    assert np.all(np.isfinite(log_probs))
    draw, evaluate = jax.jit(task.simulator), jax.jit(task.log_likelihood)
    for i, key in enumerate(single):
        row = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), theta)
        np.testing.assert_allclose(draw(key, row), xs[i], rtol=2e-3)
        log_prob = evaluate(row, np.asarray(xs[i], np.float64))
        np.testing.assert_allclose(log_prob, log_probs[i], rtol=2e-3)


@pytest.mark.parametrize("factory", TASKS)
def test_random_numbers_follow_the_key(factory):
    task = factory()
    theta = draw_theta(task)
    first, second = draw_x(task, theta, 2)
    differ = np.asarray(first != second)
    assert differ.any() if task.name in COUNTS else differ.all()
    np.testing.assert_array_equal(draw_x(task, theta, 2)[0], first)


SMOOTH = [task for task in TASKS if task.values[0] is not two_moons]


@pytest.mark.parametrize("factory", SMOOTH)
def test_expected_score_is_zero(factory):
    """E[grad log p(x | theta)] = 0 if x is drawn from the density of log p.

    The density of two_moons jumps at a bound that moves with theta, so the
    identity does not hold there.
    """
    task, size = factory(), 4000
    theta = draw_theta(task, seed=5)
    xs = draw_x(task, theta, size)
    scores = jax.jit(jax.vmap(jax.jacfwd(task.log_likelihood), (None, 0)))(theta, xs)
    flat = np.concatenate(
        [np.reshape(s, (size, -1)) for s in jax.tree.leaves(scores)], 1
    )
    z = flat.mean(0) / (flat.std(0) / np.sqrt(size))
    assert np.all(np.abs(z) < 4.5), z


@pytest.mark.parametrize("factory", SMOOTH)
def test_expected_likelihood_ratio_is_one(factory):
    """E[p(x | other) / p(x | theta)] = 1, which fixes the density's scale in x."""
    task, size = factory(), 4000
    theta = draw_theta(task, seed=5)
    other = jax.tree.map(lambda leaf: leaf * 1.002, theta)
    xs = draw_x(task, theta, size)
    log_prob = jax.jit(jax.vmap(task.log_likelihood, (None, 0)))
    ratio = np.exp(np.asarray(log_prob(other, xs) - log_prob(theta, xs), np.float64))
    assert ratio.std() > 1e-4
    assert abs(ratio.mean() - 1.0) < 4.5 * ratio.std() / np.sqrt(size) + 1e-5


@pytest.mark.parametrize(
    ("factory", "theta"),
    [
        (two_moons, [0.3, -0.6]),
        (two_moons, [-0.8, 0.1]),
        (gaussian_mixture, [2.0, -7.0]),
    ],
)
def test_density_integrates_to_one_and_matches_draws(factory, theta):
    task, size, num_cells = factory(), 20_000, 12
    theta = jnp.array(theta)
    xs = np.asarray(draw_x(task, theta, size))
    width = np.ptp(xs, axis=0)
    low, high = xs.min(0) - 0.05 * width, xs.max(0) + 0.05 * width
    # Mass of each cell of a coarse grid by the midpoint rule on a fine one.
    per_cell = 60
    axes = [
        lo
        + (np.arange(num_cells * per_cell) + 0.5) / (num_cells * per_cell) * (hi - lo)
        for lo, hi in zip(low, high, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_probs = jax.jit(jax.vmap(task.log_likelihood, (None, 0)))(theta, points)
    density = np.exp(np.asarray(log_probs, np.float64))
    area = np.prod((high - low) / (num_cells * per_cell))
    mass = density.reshape(num_cells, per_cell, num_cells, per_cell).sum((1, 3)) * area
    # Draws of a Gaussian of scale 1 leave 1e-3 outside the box they span.
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)
    edges = [
        np.linspace(lo, hi, num_cells + 1) for lo, hi in zip(low, high, strict=True)
    ]
    counts = np.histogram2d(*xs.T, bins=edges)[0]
    big = mass * size > 10.0
    observed = np.append(counts[big], counts[~big].sum())
    expected = np.append(mass[big] * size, size * (1.0 - mass[big].sum()))
    chi2 = np.sum((observed - expected) ** 2 / expected)
    assert big.sum() > 15
    assert stats.chi2.sf(chi2, big.sum()) > 1e-4


def test_two_moons_radius_and_angle():
    theta = jnp.array([0.4, 0.5])
    xs = np.asarray(draw_x(two_moons(), theta, 4000), np.float64)
    u = xs[:, 0] + 0.9 / np.sqrt(2.0) - 0.25
    v = xs[:, 1] - 0.1 / np.sqrt(2.0)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    assert stats.kstest(radius, stats.norm(0.1, 0.01).cdf).pvalue > 1e-3
    uniform = stats.uniform(-np.pi / 2.0, np.pi)
    assert stats.kstest(angle, uniform.cdf).pvalue > 1e-3


def test_two_moons_density_in_closed_form():
    # At radius 0.1 the density is N(0.1; 0.1, 0.01^2) / (pi 0.1), at any angle.
    theta, task = jnp.array([0.4, 0.5]), two_moons()
    centre = np.array([0.25 - 0.9 / np.sqrt(2.0), 0.1 / np.sqrt(2.0)])
    expected = np.log(1.0 / (0.01 * np.sqrt(2.0 * np.pi)) / (np.pi * 0.1))
    for angle in (-1.2, 0.0, 0.7):
        x = centre + 0.1 * np.array([np.cos(angle), np.sin(angle)])
        np.testing.assert_allclose(task.log_likelihood(theta, x), expected, atol=2e-3)
    behind = centre - np.array([0.1, 0.0])
    assert task.log_likelihood(theta, behind) < -100.0
    mirrored = -theta[::-1]
    np.testing.assert_allclose(
        task.log_likelihood(mirrored, x), task.log_likelihood(theta, x), atol=2e-3
    )
    gradient = jax.grad(task.log_likelihood)(jnp.zeros(2), jnp.array([0.25, 0.0]))
    assert np.all(np.isfinite(gradient))


SLCP_THETAS = [
    [0.7, -2.9, -1.0, -0.9, 0.6],
    [1.0, 2.0, 2.5, 0.3, -2.9],
    [0, 0, 0, 1, 1],
]


def slcp_moments(theta):
    mean, s1, s2 = np.array(theta[:2]), theta[2] ** 2, theta[3] ** 2
    off = np.tanh(theta[4]) * s1 * s2
    return mean, np.array([[s1**2, off], [off, s2**2]]) + 1e-6 * np.eye(2)


@pytest.mark.parametrize("theta", SLCP_THETAS)
def test_slcp_against_scipy(theta):
    task = slcp()
    mean, covariance = slcp_moments(theta)
    xs = np.asarray(draw_x(task, jnp.array(theta, float), 50), np.float64)
    exact = stats.multivariate_normal(mean, covariance)
    expected = exact.logpdf(xs.reshape(50, 4, 2)).sum(1)
    actual = jax.vmap(task.log_likelihood, (None, 0))(jnp.array(theta, float), xs)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-2)


def test_slcp_draws_have_the_covariance():
    theta, size = SLCP_THETAS[0], 20_000
    mean, covariance = slcp_moments(theta)
    points = np.asarray(draw_x(slcp(), jnp.array(theta), size)).reshape(size, 4, 2)
    scale = np.sqrt(np.diag(covariance))
    z = (points - mean) / scale
    assert np.all(np.abs(z.mean(0)) < 4.5 / np.sqrt(size))
    rho = covariance[0, 1] / np.prod(scale)
    # Across the four points of one draw all correlations are zero.
    expected = np.kron(np.eye(4), np.array([[1.0, rho], [rho, 1.0]]))
    actual = np.corrcoef(z.reshape(size, 8).T)
    np.testing.assert_allclose(actual, expected, atol=4.5 / np.sqrt(size))
    np.testing.assert_allclose(z.std(0), 1.0, atol=4.5 / np.sqrt(2 * size))


def test_slcp_gradients_are_finite_where_scales_vanish():
    theta = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0])
    gradient = jax.grad(slcp().log_likelihood)(theta, jnp.zeros(8))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("factory", [gaussian_linear, gaussian_linear_uniform])
def test_linear_gaussians_against_scipy(factory):
    task = factory()
    theta = draw_theta(task)
    x = np.asarray(task.x_observed, np.float64)
    expected = stats.norm(np.asarray(theta), np.sqrt(0.1)).logpdf(x).sum()
    np.testing.assert_allclose(task.log_likelihood(theta, x), expected, rtol=1e-5)
    errors = np.asarray(draw_x(task, theta, 4000) - theta) / np.sqrt(0.1)
    assert stats.kstest(errors.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(errors.T) - np.eye(10)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(4000)


def test_gaussian_linear_prior_against_scipy():
    task = gaussian_linear()
    theta = draw_theta(task)
    prior = stats.norm(0.0, np.sqrt(0.1)).logpdf(np.asarray(theta)).sum()
    np.testing.assert_allclose(task.prior.log_prob(theta), prior, rtol=1e-5)


def test_gaussian_mixture_picks_one_component_for_all_of_x():
    task, theta = gaussian_mixture(), jnp.array([1.0, -2.0])
    errors = np.asarray(draw_x(task, theta, 20_000) - theta)
    # P(both |e| < 0.3) is 0.5 p^2 + 0.5 q^2, not (0.5 p + 0.5 q)^2.
    wide, narrow = 2.0 * stats.norm.cdf([0.3, 3.0]) - 1.0
    expected = 0.5 * wide**2 + 0.5 * narrow**2
    share = np.mean(np.all(np.abs(errors) < 0.3, axis=1))
    tolerance = 4.5 * np.sqrt(expected * (1.0 - expected) / 20_000)
    assert abs(expected - (0.5 * wide + 0.5 * narrow) ** 2) > 2.0 * tolerance
    assert abs(share - expected) < tolerance


def test_gaussian_mixture_far_from_theta_is_finite():
    task = gaussian_mixture()
    value, gradient = jax.value_and_grad(task.log_likelihood)(
        jnp.array([10.0, 10.0]), jnp.array([-10.0, -10.0])
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("factory", "bound"),
    [
        (two_moons, 1.0),
        (slcp, 3.0),
        (slcp_distractors, 3.0),
        (gaussian_linear_uniform, 1.0),
        (gaussian_mixture, 10.0),
    ],
)
def test_uniform_priors(factory, bound):
    prior = factory().prior
    theta = jnp.full(prior.num_dims, 0.999 * bound)
    expected = -prior.num_dims * np.log(2.0 * bound)
    np.testing.assert_allclose(prior.log_prob(theta), expected, rtol=1e-5)
    assert prior.log_prob(theta.at[0].set(1.001 * bound)) == -np.inf


def test_lotka_volterra_against_scipy():
    task = lotka_volterra()
    theta = np.array([0.7, 0.03, 0.9, 0.04])

    def rates(_, log_z):
        prey, predators = np.exp(log_z)
        return [theta[0] - theta[1] * predators, theta[3] * prey - theta[2]]

    times = 2.1 * np.arange(10)
    solution = integrate.solve_ivp(
        rates, (0, times[-1]), np.log([30.0, 1.0]), t_eval=times, rtol=1e-9, atol=1e-9
    )
    mean = solution.y.ravel()  # ten prey, then ten predators
    x = np.asarray(task.x_observed, float)
    expected = stats.norm(mean, 0.1).logpdf(np.log(x)).sum() - np.log(x).sum()
    np.testing.assert_allclose(task.log_likelihood(theta, x), expected, rtol=2e-3)
    errors = (np.log(draw_x(task, jnp.asarray(theta), 400)) - mean) / 0.1
    assert stats.kstest(errors.ravel(), "norm").pvalue > 1e-3
    assert task.log_likelihood(theta, -x) == -np.inf


def test_lotka_volterra_is_solved_wherever_the_prior_goes():
    task = lotka_volterra()
    theta_key, x_key = jax.random.split(jax.random.key(0))
    theta = jax.vmap(task.prior.sample)(jax.random.split(theta_key, 2_000))
    simulate = jax.jit(jax.vmap(task.simulator))
    xs = np.asarray(simulate(jax.random.split(x_key, 2_000), theta))
    assert np.all(np.isfinite(xs) & (xs > 0))
