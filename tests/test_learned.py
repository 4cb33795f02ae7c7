"""Learned likelihoods and ratios inside numpyro models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

import sbijax as sj

PRIOR = sj.make_prior({"level": dist.Normal(0.0, 3.0)})


def simulator(key, theta):
    return theta["level"] + jnp.array([1.0, 0.5]) * jax.random.normal(key, (2,))


@pytest.fixture(scope="module")
def sims():
    return sj.simulate(jax.random.key(0), PRIOR, simulator, 4_000, progress=False)


@pytest.fixture(scope="module")
def nle(sims):
    # Untrained: theta and x are jointly Gaussian, which is what it starts from.
    nle = sj.make_nle(PRIOR, standardizer=sj.networks.zscore())
    return nle, nle.init(jax.random.key(1), sims)


@pytest.fixture(scope="module")
def nre(sims):
    nre = sj.make_nre(PRIOR, standardizer=sj.networks.zscore())
    return nre, nre.init(jax.random.key(1), sims)


def test_log_prob_broadcasts_trials_and_subjects(nle):
    estimator, params = nle
    theta = {"level": jnp.array([0.5, -1.0, 2.0])}
    site = sj.LearnedLikelihood(estimator, params, theta)
    assert (site.batch_shape, site.event_shape) == ((3,), (2,))
    x = jax.random.normal(jax.random.key(2), (5, 3, 2))
    found = site.log_prob(x)
    assert found.shape == (5, 3)
    one = estimator.log_likelihood(params, {"level": theta["level"][1]}, x[4, 1])
    np.testing.assert_allclose(found[4, 1], one, rtol=1e-5)


def test_draws_come_from_the_emulator(nle):
    estimator, params = nle
    site = sj.LearnedLikelihood(estimator, params, {"level": jnp.array([0.5, 4.0])})
    x = np.asarray(site.sample(jax.random.key(3), (2_000,)))
    assert x.shape == (2_000, 2, 2)
    # The regression was fitted to 4,000 rows; its error adds to that of the draws.
    error = 5 * np.array([1.0, 0.5]) * (1 / 2_000 + 4 / 4_000) ** 0.5
    assert np.all(np.abs(x.mean(axis=0) - [[0.5], [4.0]]) < error)
    assert np.all(np.abs(x.std(axis=0) - [1.0, 0.5]) < error)


def test_sites_survive_jit_and_pytree_maps(nle):
    estimator, params = nle
    site = sj.LearnedLikelihood(estimator, params, {"level": jnp.zeros(2)})
    same = jax.jit(lambda site: site)(site)
    x = jnp.ones((2, 2))
    np.testing.assert_allclose(same.log_prob(x), site.log_prob(x), rtol=1e-5)


def test_what_does_not_fit_is_refused(nle, nre):
    estimator, params = nle
    with pytest.raises(ValueError, match="theta must look like"):
        sj.LearnedLikelihood(estimator, params, jnp.zeros(3))
    site = sj.LearnedLikelihood(estimator, params, {"level": jnp.zeros(3)})
    with pytest.raises(ValueError, match="x must look like"):
        site.log_prob(jnp.zeros((3, 5)))
    with pytest.raises(TypeError, match="LikelihoodEstimator"):
        sj.LearnedLikelihood(*nre, {"level": jnp.zeros(3)})
    npe = sj.make_npe(PRIOR)
    with pytest.raises(TypeError, match="learned likelihood or ratio"):
        sj.learned_factor("x", npe, params, {"level": 0.0}, jnp.zeros(2))


def test_a_site_holds_one_array():
    nle = sj.make_nle(PRIOR)
    theta = {"level": jnp.linspace(-1.0, 1.0, 50)}
    sims = sj.make_simulations(theta, {"a": jnp.arange(50.0)})
    params = nle.init(jax.random.key(0), sims)
    with pytest.raises(TypeError, match="learned_factor"):
        sj.LearnedLikelihood(nle, params, {"level": 0.0})


# Subjects under a population: theta_j ~ N(centre, spread), known noise.  Given the
# spread everything is Gaussian, so the exact posterior is a one-dimensional sum.

NUM_SUBJECTS, NUM_TRIALS = 6, 3


def make_data():
    theta_key, x_key = jax.random.split(jax.random.key(5))
    level = 1.0 + 0.8 * jax.random.normal(theta_key, (NUM_SUBJECTS,))
    keys = jax.random.split(x_key, (NUM_TRIALS, NUM_SUBJECTS))
    one_trial = jax.vmap(simulator, (0, {"level": 0}))
    return jax.vmap(one_trial, (0, None))(keys, {"level": level})


def exact_means(x):
    """Posterior means of centre, spread and levels."""
    precision = NUM_TRIALS * (1.0 / 1.0**2 + 1.0 / 0.5**2)
    estimate = np.sum(np.asarray(x) * [1.0, 4.0], axis=(0, 2)) / precision
    spreads = np.linspace(1e-3, 8.0, 4_000)
    variance = spreads[:, None] ** 2 + 1.0 / precision
    weight = np.sum(1.0 / variance * np.ones(NUM_SUBJECTS), axis=1) + 1.0
    centre = np.sum(estimate / variance, axis=1) / weight
    log_p = norm.logpdf(spreads)  # half-normal, up to a constant
    log_p = log_p + np.sum(
        norm.logpdf(estimate, centre[:, None], np.sqrt(variance)), axis=1
    )
    # Laplace's identity for the centre, exact for Gaussians.
    log_p = log_p + norm.logpdf(centre) - 0.5 * np.log(weight)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    shrink = spreads[:, None] ** 2 / variance
    level = shrink * estimate + (1.0 - shrink) * centre[:, None]
    return p @ centre, p @ spreads, p @ level


def run_model(add_data, x):
    def model():
        centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        with numpyro.plate("subjects", NUM_SUBJECTS, dim=-1):
            unit = numpyro.sample("unit", dist.Normal(0.0, 1.0))
            level = numpyro.deterministic("level", centre + spread * unit)
            with numpyro.plate("trials", NUM_TRIALS, dim=-2):
                add_data({"level": level}, x)

    # numpyro splits keys by scanning over them, which the checker takes for reuse.
    with jax.debug_key_reuse(False):
        mcmc = numpyro.infer.MCMC(
            numpyro.infer.NUTS(model, target_accept_prob=0.95),
            num_warmup=500,
            num_samples=1_000,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(6))
    return mcmc.get_samples(group_by_chain=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["likelihood", "ratio"])
def test_hierarchical_posterior_is_the_exact_one(kind, nle, nre):
    x = make_data()

    def add_data(theta, x):
        if kind == "likelihood":
            numpyro.sample("x", sj.LearnedLikelihood(*nle, theta), obs=x)
        else:
            sj.learned_factor("x", *nre, theta, x)

    draws = run_model(add_data, x)
    centre, spread, level = exact_means(x)
    for name, exact in (("centre", centre), ("spread", spread), ("level", level)):
        chains = np.asarray(draws[name], float)
        assert np.all(split_gelman_rubin(chains) < 1.01)
        error = chains.std(axis=(0, 1)) / effective_sample_size(chains) ** 0.5
        # Regression on 4,000 rows shifts the data by noise / sqrt(4,000): .02.
        assert np.all(np.abs(chains.mean(axis=(0, 1)) - exact) < 4 * error + 0.02)
