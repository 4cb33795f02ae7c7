"""Variational inference and Pathfinder on targets that are known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from sbijax.base import Target
from sbijax.densities import affine, coupling, flow, nsf
from sbijax.samplers.variational import (
    _adam,
    forward_kl,
    importance_weighted,
    pathfinder,
    reverse_kl,
    variational,
)

X = np.array([1.0, -0.5])
NOISE = 0.3
SMALL = nsf(num_layers=2, hidden_size=32)
NORMAL = flow(coupling(affine()), num_layers=2)
SAMPLERS = {
    "forward_kl": variational(SMALL, num_steps=500),
    "pathfinder": pathfinder(),
}


def with_prior(log_likelihood, num_dims=2):
    return Target(
        sample_prior=lambda key: jax.random.normal(key, (num_dims,)),
        log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        log_likelihood=log_likelihood,
    )


def gaussian(x=X):
    return with_prior(lambda z: jnp.sum(norm.logpdf(x, z, NOISE)))


def gaussian_answer(x=X, noise=NOISE):
    """Mean, standard deviation and log-evidence of N(z; 0, 1) N(x; z, noise^2)."""
    total = 1.0 + noise**2
    evidence = np.sum(np.asarray(norm.logpdf(x, 0.0, total**0.5), float))
    return x / total, (noise**2 / total) ** 0.5, evidence


def two_modes(num_dims=2):
    """Mass 0.8 and 0.2, thirty standard deviations apart."""

    def log_likelihood(z):
        first = jnp.log(0.8) + jnp.sum(norm.logpdf(1.5, z, 0.1))
        second = jnp.log(0.2) + jnp.sum(norm.logpdf(-1.5, z, 0.1))
        return jnp.logaddexp(first, second)

    _, _, evidence = gaussian_answer(np.full(num_dims, 1.5), 0.1)
    return with_prior(log_likelihood, num_dims), evidence


def half_space(bound):
    """A likelihood that is NaN, its gradient too, where z_0 is below the bound."""

    def log_likelihood(z):
        return norm.logpdf(X[1], z[1], NOISE) + 0.0 * jnp.sqrt(z[0] - bound)

    return with_prior(log_likelihood)


def run(sampler, target, num_samples=2000, seed=0):
    draw = jax.jit(lambda key: sampler(key, target, num_samples=num_samples))
    return draw(jax.random.key(seed))


def evidence_error(ess, num_draws):
    """Standard error of the log of the mean weight, and rounding."""
    return (max(1 / ess - 1 / num_draws, 0.0)) ** 0.5 + 1e-4


@pytest.mark.parametrize(
    "name", [pytest.param("forward_kl", marks=pytest.mark.slow), "pathfinder"]
)
def test_gaussian(name):
    chain, info = run(SAMPLERS[name], gaussian())
    mean, scale, evidence = gaussian_answer()
    ess = float(np.min(info.ess))
    assert chain.shape == (1, 2000, 2)
    assert 1000 < ess <= 2000
    z = np.asarray(chain[0], float)
    assert np.all(np.abs(z.mean(axis=0) - mean) < 5 * scale / ess**0.5)
    assert np.all(np.abs(z.std(axis=0) / scale - 1) < 5 / ess**0.5)
    assert abs(info.log_evidence - evidence) < 4 * evidence_error(ess, 2000)
    assert info.pareto_k < 0.7
    assert info.num_failed == 0
    halves = z.reshape(2, 1000, 2).mean(axis=1)
    assert np.all(np.abs(halves[0] - halves[1]) < 5 * scale * (4 / ess) ** 0.5)


@pytest.mark.parametrize(
    "name", [pytest.param("forward_kl", marks=pytest.mark.slow), "pathfinder"]
)
def test_two_modes_have_their_mass(name):
    target, evidence = two_modes()
    chain, info = run(SAMPLERS[name], target)
    ess = float(np.min(info.ess))
    assert ess > 500
    share = np.mean(chain[0, :, 0] > 0)
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / ess) ** 0.5
    assert abs(info.log_evidence - evidence) < 4 * evidence_error(ess, 2000)


def test_a_normal_with_reverse_kl_takes_one_mode_and_cannot_tell():
    target, evidence = two_modes(num_dims=1)
    sampler = variational(NORMAL, objective=reverse_kl, learning_rate=1e-2)
    chain, info = run(sampler, target)
    right = np.mean(chain[0, :, 0] > 0)
    assert right in (0.0, 1.0)
    assert info.pareto_k < 0.7
    mass = 0.8 if right else 0.2
    assert info.log_evidence == pytest.approx(evidence + np.log(mass), abs=0.05)


def test_a_normal_with_forward_kl_covers_both_modes():
    target, evidence = two_modes(num_dims=1)
    sampler = variational(NORMAL, objective=forward_kl, learning_rate=1e-2)
    chain, info = run(sampler, target, num_samples=5000)
    ess = float(np.min(info.ess))
    assert ess > 50
    share = np.mean(chain[0, :, 0] > 0)
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / ess) ** 0.5
    assert abs(info.log_evidence - evidence) < 4 * evidence_error(ess, 5000)


SAMPLERS_OF_HALF_SPACES = {
    "forward_kl": variational(NORMAL, num_steps=300, learning_rate=1e-2),
    "reverse_kl": variational(
        NORMAL, num_steps=300, learning_rate=1e-2, objective=reverse_kl
    ),
    "importance_weighted": variational(
        NORMAL,
        num_steps=300,
        learning_rate=1e-2,
        objective=partial(importance_weighted, num_particles=4),
    ),
    "pathfinder": pathfinder(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS_OF_HALF_SPACES)
def test_where_the_density_is_nan(name):
    sampler = SAMPLERS_OF_HALF_SPACES[name]

    @jax.jit
    def draw(key, bound):
        return sampler(key, half_space(bound), num_samples=2000)

    chain, info = draw(jax.random.key(0), 0.0)
    if name == "reverse_kl":  # q has gone where there is no density, and says so
        assert info.num_failed == 1
    else:
        assert np.all(chain[0, :, 0] > 0)
        assert info.num_failed == 0
        mean, scale, _ = gaussian_answer(X[1:])
        error = scale / float(np.min(info.ess)) ** 0.5
        assert np.abs(np.mean(chain[0, :, 1]) - mean) < 5 * error
    nowhere, info = draw(jax.random.key(1), 1e3)
    assert np.all(np.isfinite(nowhere))
    assert info.num_failed == 1
    assert info.log_evidence == -np.inf
    assert info.pareto_k == np.inf


def small_run(sampler, key, x):
    chain, info = sampler(key, gaussian(x), num_samples=200)
    return chain, info.log_evidence


SMALL_SAMPLERS = {
    "variational": variational(NORMAL, num_steps=20, batch_size=32),
    "pathfinder": pathfinder(num_paths=2, max_iterations=10),
}


@pytest.mark.parametrize("name", SMALL_SAMPLERS)
def test_vmap_equals_a_loop(name):
    xs = jnp.array([[0.0, 0.5], [1.0, -1.0], [2.0, 1.0]])
    draw = partial(small_run, SMALL_SAMPLERS[name])
    keys = jax.random.split(jax.random.key(0), 3)
    _, together = jax.jit(jax.vmap(draw))(keys, xs)
    one = jax.jit(draw)
    for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        chain, log_evidence = one(key, xs[i])
        assert np.all(np.isfinite(chain))
        # The mean weight is smooth, while rounding can pick another draw.
        np.testing.assert_allclose(together[i], log_evidence, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_SAMPLERS)
def test_jit_equals_eager(name):
    x = jnp.array([0.0, 0.5])
    draw = partial(small_run, SMALL_SAMPLERS[name])
    eager = draw(jax.random.key(1), x)
    jitted = jax.jit(draw)(jax.random.key(1), x)
    np.testing.assert_allclose(eager[1], jitted[1], atol=1e-2)
    differs = np.any(np.abs(eager[0] - jitted[0]) > 1e-2, axis=-1)
    assert np.mean(differs) < 0.05


def test_adam_skips_steps_with_nan():
    def loss(net, key):
        scale = jnp.where(jax.random.uniform(key) < 0.3, jnp.nan, 1.0)
        return scale * jnp.sum((net["a"] - 2.0) ** 2)

    net = _adam(loss, {"a": jnp.zeros(3)}, jax.random.key(0), 400, 0.05)
    np.testing.assert_allclose(net["a"], 2.0, atol=0.01)


def test_adam_takes_the_steps_of_the_paper():
    # With a constant gradient, m / sqrt(v) is its sign: each step is the rate.
    net = _adam(lambda p, key: 3.0 * p, jnp.zeros(()), jax.random.key(0), 10, 0.1)
    rates = 0.05 * (1 + np.cos(np.pi * np.arange(1, 11) / 10))
    assert net == pytest.approx(-np.sum(rates), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: variational(SMALL, num_steps=0), "num_steps must be at least 1"),
        (lambda: variational(SMALL, batch_size=1), "batch_size must be at least 2"),
        (lambda: variational(SMALL, learning_rate=0.0), "learning_rate must be posi"),
        (lambda: variational(SMALL, learning_rate=np.nan), "learning_rate holds 1"),
        (lambda: pathfinder(num_paths=0), "num_paths must be at least 1"),
        (lambda: pathfinder(num_candidates=0), "num_candidates must be at least 1"),
        (lambda: pathfinder(max_iterations=0), "max_iterations must be at least 1"),
        (lambda: pathfinder(num_elbo_draws=-1), "num_elbo_draws must be at least 1"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: variational(nsf), "density must be of type Density, got the func"),
        (lambda: variational(SMALL, objective="kl"), "objective must be a function"),
        (lambda: variational(SMALL, num_steps=10.0), "num_steps must be an integer"),
        (lambda: pathfinder(num_paths=True), "num_paths must be an integer"),
    ],
)
def test_bad_types(make, message):
    with pytest.raises(TypeError, match=message):
        make()
