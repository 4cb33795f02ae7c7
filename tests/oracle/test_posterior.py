"""Amortized methods find posteriors that are known in closed form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj

pytestmark = pytest.mark.slow

NUM_DRAWS = 10_000

# Estimating k numbers from N simulations costs k / (2 N) nats.  With N = 10,000,
# .02 nats pay for 400 numbers: more than a smooth posterior needs, far fewer than
# the flow has weights.  The limit is for the mean over observations; a single one
# may be at twice that.
MAX_KL = 0.02

# Moments follow from it.  Two Gaussians whose means are d standard deviations
# apart diverge by d^2 / 2, and by |E|^2 / 4 if the covariance is off by a relative
# E: at 2 MAX_KL, d = .28 and |E| = .4.  Five standard errors of 10,000 draws add
# 5 sqrt(D / 10,000) and 5 sqrt(2) D / 100, with D = 2.
MAX_SHIFT = (4.0 * MAX_KL) ** 0.5 + 0.07
MAX_SPREAD = (8.0 * MAX_KL) ** 0.5 + 0.14


class Oracle(NamedTuple):
    """A problem with `posterior(x)`, a numpyro distribution of theta."""

    prior: dist.Distribution
    simulator: Callable[[Any, Any], Any]
    posterior: Callable[[Any], dist.Distribution]


def linear_gaussian():
    """theta ~ N(m, S), x = A theta + b + N(0, R) with correlated noise."""
    m, s = np.array([1.0, -2.0]), np.array([[1.0, 0.5], [0.5, 0.8]])
    a = np.array([[1.0, 0.5], [-0.3, 1.0], [0.7, 0.7]])
    b = np.array([3.0, 0.0, -10.0])
    r = np.array([[0.5, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.6]])
    precision = np.linalg.inv(s) + a.T @ np.linalg.inv(r) @ a
    covariance = np.linalg.inv(precision)

    def simulator(key, theta):
        noise = jax.random.multivariate_normal(key, jnp.zeros(3), jnp.asarray(r))
        return jnp.asarray(a) @ theta + jnp.asarray(b) + noise

    def posterior(x):
        information = np.linalg.inv(s) @ m + a.T @ np.linalg.inv(r) @ (x - b)
        return dist.MultivariateNormal(
            jnp.asarray(covariance @ information), jnp.asarray(covariance)
        )

    return Oracle(
        dist.MultivariateNormal(jnp.asarray(m), jnp.asarray(s)), simulator, posterior
    )


def gamma_poisson():
    """rate ~ Gamma(3, 0.5), five counts ~ Poisson(rate)."""
    return Oracle(
        dist.Gamma(3.0, 0.5),
        lambda key, rate: jax.random.poisson(key, rate, (5,)),
        lambda x: dist.Gamma(3.0 + np.sum(x), 0.5 + 5.0),
    )


def dirichlet_multinomial():
    """theta ~ Dirichlet(2, 3, 1.5), counts of 20 trials."""
    prior = dist.Dirichlet(jnp.array([2.0, 3.0, 1.5]))

    def simulator(key, theta):
        trials = jax.random.categorical(key, jnp.log(theta), shape=(20,))
        return jnp.bincount(trials, length=3)

    return Oracle(
        prior, simulator, lambda x: dist.Dirichlet(prior.concentration + jnp.asarray(x))
    )


ORACLES = {
    "linear_gaussian": linear_gaussian,
    "gamma_poisson": gamma_poisson,
    "dirichlet_multinomial": dirichlet_multinomial,
}


METHODS = {"npe": sj.make_npe, "fmpe": sj.make_fmpe, "npse": sj.make_npse}


class Trained(NamedTuple):
    """An oracle, a trained estimator and observations from the prior."""

    oracle: Oracle
    estimator: sj.Estimator
    params: sj.Params
    xs: np.ndarray

    def at(self, i):
        """The posterior of one observation as it was learned."""
        return sj.infer(self.estimator, self.params, self.xs[i])


CASES = [("npe", oracle) for oracle in ORACLES]
CASES += [("fmpe", "linear_gaussian"), ("npse", "dirichlet_multinomial")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def trained(request):
    method, name = request.param
    oracle = ORACLES[name]()
    prior = sj.make_prior(oracle.prior)
    sims_key, train_key, x_key = jax.random.split(jax.random.key(0), 3)
    sims = sj.simulate(
        sims_key, prior, oracle.simulator, num_simulations=10_000, progress=False
    )
    estimator = METHODS[method](prior)
    # Larger batches than by default, for time.
    params, _ = sj.train(train_key, estimator, sims, batch_size=200, progress=False)
    fresh = sj.simulate(
        x_key, prior, oracle.simulator, num_simulations=5, progress=False
    )
    return Trained(oracle, estimator, params, np.asarray(fresh.x))


def moments(d):
    """Mean and covariance of the free coordinates, in closed form."""
    if isinstance(d, dist.Gamma):
        mean = np.array([d.concentration / d.rate])
        return mean, np.array([[d.concentration / d.rate**2]])
    if isinstance(d, dist.Dirichlet):  # without its last coordinate
        total = np.sum(d.concentration)
        p = np.asarray(d.concentration)[:-1] / total
        return p, (np.diag(p) - np.outer(p, p)) / (total + 1.0)
    return np.asarray(d.mean), np.asarray(d.covariance_matrix)


def differences(trained, i, log_density):
    """Mean of log p - log_density over draws from the posterior p, and its error."""
    exact = trained.oracle.posterior(trained.xs[i])
    theta = exact.sample(jax.random.key(100 + i), (NUM_DRAWS,))
    log_p = np.asarray(exact.log_prob(theta), float)
    difference = log_p - np.asarray(jax.vmap(log_density)(theta), float)
    return difference.mean(), difference.std() / NUM_DRAWS**0.5


def test_density_is_the_exact_one(trained):
    kl, error = np.array(
        [
            differences(
                trained, i, sj.infer(trained.estimator, trained.params, x).log_prob
            )
            for i, x in enumerate(trained.xs)
        ]
    ).T
    assert np.all(error < 0.2 * MAX_KL)
    # A divergence is never negative: below zero is a density that is not
    # normalised, or is one in other coordinates.
    assert np.all(kl > -5 * error)
    assert np.mean(kl) < MAX_KL
    assert np.all(kl < 2 * MAX_KL)


def test_the_prior_is_far_beyond_the_limit(trained):
    for i in range(len(trained.xs)):
        assert differences(trained, i, trained.oracle.prior.log_prob)[0] > 10 * MAX_KL


def test_draws_have_the_exact_moments(trained):
    for i, x in enumerate(trained.xs):
        draws = trained.at(i).sample(jax.random.key(200 + i), NUM_DRAWS)
        mean, covariance = moments(trained.oracle.posterior(x))
        draws = np.asarray(draws, float).reshape(NUM_DRAWS, -1)[:, : len(mean)]
        whiten = np.linalg.inv(np.linalg.cholesky(covariance))
        y = (draws - mean) @ whiten.T
        assert np.linalg.norm(y.mean(axis=0)) < MAX_SHIFT
        spread = y.T @ y / NUM_DRAWS - np.outer(y.mean(axis=0), y.mean(axis=0))
        assert np.linalg.norm(spread - np.eye(len(mean))) < MAX_SPREAD
