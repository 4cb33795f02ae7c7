"""Tempered SMC on targets that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from sbijax.base import Target
from sbijax.samplers import tempered_smc

PRIOR_SCALE = 2.0
NOISE = np.array([[0.5, 0.2], [0.2, 0.3]])
X = np.array([1.0, -2.0])


def with_prior(log_likelihood, num_dims=2, scale=PRIOR_SCALE):
    return Target(
        sample_prior=lambda key: scale * jax.random.normal(key, (num_dims,)),
        log_prior=lambda z: jnp.sum(norm.logpdf(z, 0.0, scale)),
        log_likelihood=log_likelihood,
    )


def log_normal(x, mean, covariance):
    return jax.scipy.stats.multivariate_normal.logpdf(x, mean, jnp.asarray(covariance))


def gaussian():
    return with_prior(lambda z: log_normal(jnp.asarray(X), z, NOISE))


def gaussian_answer():
    """Mean, covariance and evidence of N(z; 0, s^2 I) N(x; z, R)."""
    prior = PRIOR_SCALE**2 * np.eye(2)
    gain = prior @ np.linalg.inv(prior + NOISE)
    evidence = log_normal(X, np.zeros(2), prior + NOISE)
    return gain @ X, prior - gain @ prior, float(evidence)


def run(target, num_samples=4000, seed=0, **options):
    sampler = jax.jit(
        lambda key: tempered_smc(**options)(key, target, num_samples=num_samples)
    )
    return sampler(jax.random.key(seed))


@pytest.fixture(scope="module")
def gaussian_run():
    return run(gaussian())


def test_moments_of_a_correlated_gaussian(gaussian_run):
    chains, info = gaussian_run
    mean, covariance, _ = gaussian_answer()
    z = np.asarray(chains, float).reshape(-1, 2)
    ess = float(np.min(info.ess))
    assert ess > 1000
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z.mean(axis=0) - mean) < 5 * sd / ess**0.5)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    spread = np.cov((z - mean) @ whiten.T, rowvar=False)
    assert np.all(np.abs(spread - np.eye(2)) < 5 * (2 / ess) ** 0.5)


def test_evidence():
    *_, expected = gaussian_answer()
    run_many = jax.jit(
        jax.vmap(lambda key: tempered_smc()(key, gaussian(), num_samples=1000)[1])
    )
    found = np.asarray(run_many(jax.random.split(jax.random.key(3), 20)).log_evidence)
    error = found.std(ddof=1) / len(found) ** 0.5
    assert error < 0.05
    # The logarithm of an unbiased estimate is low by half its relative variance.
    assert abs(found.mean() + found.var() / 2 - expected) < 4 * error


def test_the_info_is_laid_out_by_dimension_and_population(gaussian_run):
    chains, info = gaussian_run
    assert chains.shape == (4, 1000, 2)
    assert info.rhat.shape == info.ess.shape == (2,)
    assert info.acceptance.shape == (4,)
    assert np.all((info.acceptance > 0.05) & (info.acceptance < 0.95))
    assert np.all(info.rhat < 1.02)
    assert int(info.num_failed) == int(info.num_invalid) == 0


def two_modes(distance=8.0, share=0.3, scale=0.05):
    """A mixture that no local move can cross."""

    def log_likelihood(z):
        first = jnp.log(share) + norm.logpdf(z[0], -distance / 2, scale)
        second = jnp.log1p(-share) + norm.logpdf(z[0], distance / 2, scale)
        return jnp.logaddexp(first, second)

    return with_prior(log_likelihood, num_dims=1, scale=4.0)


def test_separated_modes_keep_their_mass():
    # The prior is symmetric, so each mode keeps its share.
    sampler = tempered_smc(num_populations=20)
    chains, _ = jax.jit(lambda key: sampler(key, two_modes(), num_samples=20_000))(
        jax.random.key(1)
    )
    shares = np.mean(np.asarray(chains)[..., 0] < 0.0, axis=1)
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert error < 0.03
    assert abs(np.mean(shares) - 0.3) < 4 * error


def test_half_normal_at_its_bound():
    # v = exp(z) is half-normal: p(z) = 2 N(v; 0, 1) v, under the prior N(0, 2^2).
    def log_likelihood(z):
        log_target = jnp.log(2.0) + norm.logpdf(jnp.exp(z[0])) + z[0]
        return log_target - norm.logpdf(z[0], 0.0, PRIOR_SCALE)

    chains, info = run(with_prior(log_likelihood, num_dims=1))
    v, ess = np.exp(np.asarray(chains, float)), float(info.ess[0])
    assert v.min() < 0.01
    mean, variance = np.sqrt(2 / np.pi), 1 - 2 / np.pi
    assert abs(v.mean() - mean) < 5 * np.sqrt(variance / ess)
    assert abs((v**2).mean() - 1.0) < 5 * np.sqrt(2 / ess)
    assert abs(float(info.log_evidence)) < 0.2


def test_regions_without_density_are_avoided():
    def log_likelihood(z):
        return jnp.where(z[0] > 0.0, log_normal(jnp.asarray(X), z, NOISE), jnp.nan)

    chains, info = run(with_prior(log_likelihood))
    assert np.all(chains[..., 0] > 0.0)
    assert int(info.num_failed) == 0
    assert np.all(info.rhat < 1.05)


def test_a_density_that_is_nowhere_fails_and_says_so():
    _, info = run(with_prior(lambda z: jnp.nan * z[0]), num_samples=100)
    assert int(info.num_failed) == 4
    assert not np.isfinite(info.log_evidence)


def test_populations_that_do_not_arrive_have_failed():
    _, info = run(two_modes(), num_samples=100, max_temperatures=1)
    assert int(info.num_failed) == 4


def test_one_bad_observation_leaves_the_others_alone():
    def draw(key, x):
        target = with_prior(lambda z: log_normal(x, z, NOISE))
        return tempered_smc()(key, target, num_samples=200)

    xs = jnp.array([[1.0, -2.0], [jnp.nan, 0.0], [0.0, 1.0]])
    keys = jax.random.split(jax.random.key(0), 3)
    chains, info = jax.jit(jax.vmap(draw))(keys, xs)
    assert info.num_failed.tolist() == [0, 4, 0]
    single, _ = jax.jit(draw)(jax.random.clone(keys)[2], xs[2])
    np.testing.assert_allclose(chains[2], single, atol=1e-3)


def test_few_draws_come_from_full_populations():
    chains, info = run(gaussian(), num_samples=10)
    assert chains.shape == (4, 3, 2)
    assert np.all(info.ess > 100)  # of 4 x 250 particles


def test_bad_configuration_is_refused():
    for name in ("num_populations", "num_steps", "max_temperatures", "min_particles"):
        with pytest.raises(ValueError, match=name):
            tempered_smc(**{name: 0})
    with pytest.raises(ValueError, match="target_ess"):
        tempered_smc(target_ess=1.0)
    with pytest.raises(ValueError, match="num_samples"):
        tempered_smc()(jax.random.key(0), gaussian(), num_samples=0)
