"""Nested sampling on targets that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from sbijax.base import Target
from sbijax.samplers.nested import nested_sampling

NUM_SEEDS = 12
X = np.array([1.0, -0.5])
NOISE = 0.3


def with_prior(log_likelihood, num_dims=2):
    return Target(
        sample_prior=lambda key: jax.random.normal(key, (num_dims,)),
        log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        log_likelihood=log_likelihood,
    )


def gaussian(x=X, noise=NOISE):
    return with_prior(lambda z: jnp.sum(norm.logpdf(x, z, noise)), len(x))


def gaussian_answer(x=X, noise=NOISE):
    """Mean, standard deviation and log-evidence of N(z; 0, 1) N(x; z, noise^2)."""
    total = 1.0 + noise**2
    evidence = np.sum(np.asarray(norm.logpdf(x, 0.0, total**0.5), float))
    return x / total, (noise**2 / total) ** 0.5, evidence


def two_modes():
    """Mass 0.8 and 0.2, thirty standard deviations apart."""

    def log_likelihood(z):
        first = jnp.log(0.8) + jnp.sum(norm.logpdf(1.5, z, 0.1))
        second = jnp.log(0.2) + jnp.sum(norm.logpdf(-1.5, z, 0.1))
        return jnp.logaddexp(first, second)

    _, _, evidence = gaussian_answer(np.full(2, 1.5), 0.1)
    return with_prior(log_likelihood), evidence


def half_space(bound):
    """A likelihood that is NaN where z_0 is below the bound."""

    def log_likelihood(z):
        return jnp.where(z[0] > bound, norm.logpdf(X[1], z[1], NOISE), jnp.nan)

    return with_prior(log_likelihood)


def half_space_evidence(bound):
    return gaussian_answer(X[1:])[2] + float(norm.logcdf(-bound))


def compiled(target, num_samples=2000, **options):
    return jax.jit(
        lambda key: nested_sampling(**options)(key, target, num_samples=num_samples)
    )


def over_seeds(target, num_seeds=NUM_SEEDS, **options):
    run = compiled(target, **options)
    runs = [run(jax.random.key(seed)) for seed in range(num_seeds)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def assert_mean(values, expected):
    """The mean of independent runs within four of its standard errors."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    assert abs(np.mean(values) - expected) < 4 * error


@pytest.fixture(scope="module")
def gaussian_runs():
    return over_seeds(gaussian())


def test_evidence_of_a_gaussian(gaussian_runs):
    _, info = gaussian_runs
    _, scale, evidence = gaussian_answer()
    assert_mean(info.log_evidence, evidence)
    # The error that theory says, sqrt(H / num_live), of each run.
    entropy = 2 * (-np.log(scale) + (scale**2 - 1) / 2) + np.sum(X**2) / 2
    assert np.std(info.log_evidence) < 2 * (entropy / 500) ** 0.5
    assert not np.any(info.num_failed)


def test_moments_of_a_gaussian(gaussian_runs):
    chains, info = gaussian_runs
    mean, scale, _ = gaussian_answer()
    assert chains.shape == (NUM_SEEDS, 1, 2000, 2)
    assert np.all(info.ess > 500)
    assert np.all(info.ess <= 2000)
    for z, ess in zip(chains[:, 0], info.ess, strict=True):
        error = 1 / ess**0.5
        assert np.all(np.abs(z.mean(axis=0) - mean) < 5 * scale * error)
        assert np.all(np.abs(z.std(axis=0) / scale - 1) < 5 * error)
        # In random order: the dead points come in order of their likelihood.
        halves = z.reshape(2, 1000, 2).mean(axis=1)
        assert np.all(np.abs(halves[0] - halves[1]) < 5 * scale * (4 * error**2) ** 0.5)


@pytest.mark.slow
def test_two_modes_have_their_mass():
    target, evidence = two_modes()
    chains, info = over_seeds(target, num_delete=25)
    assert_mean(info.log_evidence, evidence)
    share = np.mean(chains[:, 0, :, 0] > 0, axis=1)
    assert_mean(share, 0.8)
    assert np.all((share > 0.5) & (share < 0.95))


@pytest.mark.slow
def test_evidence_where_the_density_is_nan():
    @jax.jit
    def run(key, bound):
        return nested_sampling()(key, half_space(bound), num_samples=500)

    runs = [run(jax.random.key(seed), 0.0) for seed in range(NUM_SEEDS)]
    chains, info = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    assert np.all(chains[..., 0] > 0)
    assert_mean(info.log_evidence, half_space_evidence(0.0))
    assert not np.any(info.num_failed)
    # Some 2e-4 of the prior, and nothing at all.
    for bound in (3.5, 100.0):
        chain, info = run(jax.random.key(0), bound)
        assert info.num_failed == 1
        assert np.all(np.isfinite(chain))
    assert info.log_evidence == -np.inf


def test_constant_likelihood():
    run = compiled(with_prior(lambda z: jnp.full((), 1e4)), max_steps=100)
    chain, info = run(jax.random.key(0))
    assert info.log_evidence == pytest.approx(1e4, rel=1e-6)
    error = 1 / np.asarray(info.ess) ** 0.5
    assert np.all(np.abs(np.mean(chain[0], axis=0)) < 5 * error)
    assert info.num_failed == 0


def test_too_few_steps_have_failed():
    chain, info = compiled(gaussian(), max_steps=3)(jax.random.key(0))
    assert info.num_failed == 1
    assert chain.shape == (1, 2000, 2)
    assert np.all(np.isfinite(chain))


def small_run(key, x):
    sampler = nested_sampling(num_live=100, num_delete=20, max_steps=60)
    chain, info = sampler(key, gaussian(x), num_samples=200)
    return chain, info.log_evidence, info.ess


def test_jit_equals_eager():
    x = jnp.array([0.0, 0.5])
    eager = small_run(jax.random.key(0), x)
    jitted = jax.jit(small_run)(jax.random.key(0), x)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, 1e-4), jitted, eager)


def test_vmap_equals_a_loop():
    xs = jnp.array([[0.0, 0.5], [1.0, -1.0], [2.0, 1.0]])
    keys = jax.random.split(jax.random.key(0), 3)
    chains, evidence, ess = jax.jit(jax.vmap(small_run))(keys, xs)
    one = jax.jit(small_run)
    for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        chain, log_evidence, _ = one(key, xs[i])
        # Rounding can turn a comparison, and the rest of the run is another one.
        _, scale, _ = gaussian_answer(xs[i])
        error = scale * (2 / np.min(ess[i])) ** 0.5
        difference = np.mean(chains[i, 0], axis=0) - np.mean(chain[0], axis=0)
        assert np.all(np.abs(difference) < 5 * error)
        # The error of each is sqrt(H / num_live), with H below 5 here.
        assert abs(evidence[i] - log_evidence) < 5 * (2 * 5 / 100) ** 0.5


@pytest.mark.slow
def test_ten_dimensions():
    x = np.ones(10)
    _, info = over_seeds(gaussian(x, 0.2), num_samples=1000)
    _, _, evidence = gaussian_answer(x, 0.2)
    assert_mean(info.log_evidence, evidence)
    assert np.all(info.acceptance > 0.99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_live": 1}, "num_live must be at least 2"),
        ({"num_delete": 0}, "num_delete must be at least 1"),
        ({"num_delete": 500}, "num_delete must be below num_live = 500, got 500"),
        ({"num_inner_steps": 0}, "num_inner_steps must be at least 1"),
        ({"max_steps": -1}, "max_steps must be at least 1"),
        ({"termination": np.nan}, "termination holds 1 non-finite value"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        nested_sampling(**options)


def test_bad_types():
    with pytest.raises(TypeError, match="num_live must be an integer, got 10.0"):
        nested_sampling(num_live=10.0)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        nested_sampling()(jax.random.key(0), gaussian(), num_samples=0)
