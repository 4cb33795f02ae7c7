"""The log score against closed forms of a linear Gaussian problem."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

import sbijax as sj
from sbijax.base import Estimator, LikelihoodEstimator
from sbijax.diagnostics import log_score
from sbijax.estimators._unnormalised import unnormalised_posterior

PRIOR = sj.make_prior(dist.Normal(jnp.zeros(2), 1.0).to_event(1))
NOISE = 0.5
NUM_PAIRS = 100


def exact_log_prob(params, theta, x):
    """The posterior is N(gain x, (1 - gain) I); `params` shift its mean."""
    gain = 1.0 / (1.0 + NOISE**2)
    sd = (1.0 - gain) ** 0.5
    return jnp.sum(norm.logpdf(theta, gain * x + params, sd))


EXACT = Estimator(
    init=None,
    loss=None,
    log_prob=exact_log_prob,
    sample=lambda params, key, x, *, num_samples: (jnp.zeros((num_samples, 2)), None),
)


@pytest.fixture(scope="module")
def pairs():
    theta, noise = jax.random.normal(jax.random.key(0), (2, NUM_PAIRS, 2))
    return sj.make_simulations(theta, theta + NOISE * noise)


@pytest.fixture(scope="module")
def params(pairs):
    """Those of an untrained NLE: statistics of the simulations."""
    return sj.make_nle(PRIOR).init(jax.random.key(1), pairs)


def with_likelihood(sampler=None, shift=0.0):
    """The exact likelihood times a function of x that cancels."""

    def likelihood_of(params, x):
        def log_likelihood(theta, z):
            return jnp.sum(norm.logpdf(x + shift, theta, NOISE)) + 3.0 * x[0]

        return log_likelihood

    likelihood, log_prob, sample = unnormalised_posterior(PRIOR, sampler, likelihood_of)
    return LikelihoodEstimator(None, None, log_prob, sample, likelihood, None)


def test_a_density_is_scored_pair_by_pair(pairs):
    scores = log_score(jax.random.key(0), EXACT, jnp.zeros(2), pairs)
    expected = jax.vmap(exact_log_prob, (None, 0, 0))(0.0, pairs.theta, pairs.x)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    # In chunks that do not divide the pairs, and without the rows of weight 0.
    some = pairs._replace(weight=pairs.weight.at[::2].set(0.0))
    half = log_score(jax.random.key(0), EXACT, jnp.zeros(2), some, chunk_size=7)
    np.testing.assert_allclose(half, expected[1::2], rtol=1e-5)


def test_a_worse_posterior_scores_lower(pairs):
    right, wrong = (
        log_score(jax.random.key(0), EXACT, jnp.full(2, shift), pairs)
        for shift in (0.0, 0.4)
    )
    difference = right - wrong
    sem = difference.std() / NUM_PAIRS**0.5
    divergence = 0.4**2 / (1.0 - 1.0 / (1.0 + NOISE**2))  # KL of two normals
    assert abs(difference.mean() - divergence) < 4.0 * sem
    assert difference.mean() > 4.0 * sem


def test_what_is_known_up_to_a_constant_is_on_the_same_scale(pairs, params):
    exact = log_score(jax.random.key(0), EXACT, jnp.zeros(2), pairs)
    estimated = log_score(jax.random.key(2), with_likelihood(), params, pairs)
    error = estimated - exact
    # The evidence of 1,000 particles is uncertain by .05 nats or so.
    assert np.all(np.abs(error) < 0.4)
    assert abs(error.mean()) < 4.0 * error.std() / NUM_PAIRS**0.5 + 0.005
    # Both are of one x but for the shift, so the score tells them apart as well.
    shifted = log_score(jax.random.key(2), with_likelihood(shift=0.5), params, pairs)
    gain = 1.0 / (1.0 + NOISE**2)
    wrong = log_score(jax.random.key(0), EXACT, jnp.full(2, 0.5 * gain), pairs)
    assert abs((shifted - wrong).mean()) < 0.03


def test_no_density_is_an_error(pairs):
    with pytest.raises(TypeError, match="no log_prob to score"):
        log_score(jax.random.key(0), EXACT._replace(log_prob=None), None, pairs)


def test_a_sampler_without_evidence_is_an_error(pairs, params):
    sampler = sj.samplers.nuts(num_chains=1, num_warmup=10)
    some = jax.tree.map(lambda leaf: leaf[:2], pairs)
    with pytest.raises(ValueError, match="for 2 of 2 pairs the sampler gave no"):
        log_score(
            jax.random.key(0), with_likelihood(sampler), params, some, num_samples=10
        )
