"""Posterior of a learned likelihood or ratio: prior times likelihood, sampled.

log p(theta | x) = log p(theta) + log p(x | theta) + const(x).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    ChainInfo,
    LogProbFn,
    Params,
    Prior,
    PyTree,
    SampleFn,
    Sampler,
    Target,
)
from sbijax.checks import check_count, check_like, check_sampler
from sbijax.estimators._data import num_entries, num_outside
from sbijax.estimators._in_turn import in_turn
from sbijax.samplers import tempered_smc

__all__ = ["LogLikelihoodOf", "make_target", "unnormalised_posterior"]

LogLikelihoodOf = Callable[[Params, PyTree], Callable[[PyTree, Array], Array]]


def check_one(x: PyTree, example: PyTree) -> PyTree:
    """One x, in the structure and shapes of the simulations."""
    return check_like(x, example, "x")


def count_one(x: PyTree, bounds: list) -> tuple[Array, Array]:
    """How many entries lie outside the simulations, and how many there are."""
    return num_outside(x, bounds), num_entries(x)


def unnormalised_posterior(
    prior: Prior,
    sampler: Sampler | None,
    likelihood_of: LogLikelihoodOf,
    *,
    check: Callable[[PyTree, PyTree], PyTree] = check_one,
    count: Callable[[PyTree, list], tuple[Array, Array]] = count_one,
) -> tuple[LogProbFn, LogProbFn, SampleFn]:
    """The functions of an estimator that knows its likelihood up to p(x).

    Args:
        prior: the prior.
        sampler: draws from the posterior in unconstrained space, by default
            `tempered_smc()`.
        likelihood_of: `(params, x) -> ((theta, z) -> scalar)`, for one x and a
            theta inside the support with its vector form z `[D]`; work that needs
            x alone is done once.
        check: converts an observation, given one x of the simulations.
        count: counts entries outside the simulations, given their range.

    Returns:
        The log-likelihood, its sum with the log-prior, and `sample`.
    """
    draw_chains: Sampler = tempered_smc() if sampler is None else sampler
    check_sampler(draw_chains)

    def score(params: Params, theta: PyTree, x: PyTree) -> tuple[Array, Array]:
        """log p(theta), and the log-likelihood or -inf outside the support."""
        example = params.stats.example
        theta = check_like(theta, example.theta, "theta")
        x = check(x, example.x)
        log_prior = prior.log_prob(theta)
        inside = log_prior > -jnp.inf
        safe = jax.tree.map(
            lambda leaf, default: jnp.where(inside, leaf, default), theta, example.theta
        )
        value = likelihood_of(params, x)(safe, prior.to_vector(safe))
        return log_prior, jnp.where(inside, value, -jnp.inf)

    def log_likelihood_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
        return score(params, theta, x)[1]

    def log_prob_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
        log_prior, value = score(params, theta, x)
        inside = log_prior > -jnp.inf
        return jnp.where(inside, jnp.where(inside, log_prior, 0.0) + value, -jnp.inf)

    def sample_fn(
        params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        x = check(x, params.stats.example.x)

        def draw(params: Params, key: Array, x: PyTree) -> tuple[Array, ChainInfo]:
            target = make_target(prior, likelihood_of(params, x))
            return draw_chains(key, target, num_samples=num_samples)

        chains, info = in_turn(draw)(params, key, x)
        z = chains.reshape(-1, prior.num_dims)[:num_samples]
        outside, entries = count(x, params.stats.x["range"])
        info = info._replace(num_outside=outside, num_entries=entries)
        return jax.vmap(prior.from_vector)(z), info

    return log_likelihood_fn, log_prob_fn, sample_fn


def make_target(
    prior: Prior, log_likelihood: Callable[[PyTree, Array], Array]
) -> Target:
    """Prior and likelihood as functions of the vector form of theta."""

    def log_prior_fn(z: Array) -> Array:
        return prior.log_prob(prior.from_vector(z)) + prior.log_det(z)

    return Target(
        sample_prior=lambda key: prior.to_vector(prior.sample(key)),
        log_prior=log_prior_fn,
        log_likelihood=lambda z: log_likelihood(prior.from_vector(z), z),
    )
