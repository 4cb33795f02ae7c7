"""Repeated trials: the posterior of one theta given any number of x.

    p(theta | x_1:T) = p(theta) prod_t [p(theta | x_t) / p(theta)] * const,

with p(theta | x) / p(theta) replaced by the likelihood or the ratio where the
estimator has learned one.  Of a diffusion the scores add up instead,

    grad log p(theta | x_1:T)
        = sum_t grad log p(theta | x_t) - (T - 1) grad log p(theta).

The estimator is trained on single trials; their number is chosen at inference.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    DiffusionEstimator,
    Estimator,
    LikelihoodEstimator,
    LogProbFn,
    Params,
    Prior,
    PyTree,
    RatioEstimator,
    SampleFn,
    Sampler,
    SolverInfo,
    Trials,
)
from sbijax.checks import check_count, check_record, describe, is_score_sampler
from sbijax.data import check_trials
from sbijax.estimators._data import num_outside
from sbijax.estimators._unnormalised import unnormalised_posterior
from sbijax.networks.linear import from_residual, to_residual
from sbijax.samplers import ScoreSampler, annealed_langevin

__all__ = ["iid"]


def iid(
    estimator: Estimator | LikelihoodEstimator | RatioEstimator,
    prior: Prior,
    *,
    sampler: Sampler | ScoreSampler | None = None,
) -> Estimator:
    """Turn an estimator of one trial into one of independent, repeated trials.

    Errors of the estimator add up over the trials: check with `sbc` on data of as
    many.  A likelihood or a ratio is more accurate for hundreds of them than
    posteriors of one trial each.

    Args:
        estimator: a method with a density, for example `make_nle(prior)`.
        prior: the prior of that method.
        sampler: draws from the posterior, by default `tempered_smc()`, and
            `annealed_langevin()` for `make_npse` and `make_fmpe`, which needs no
            density.

    Returns:
        An estimator with the same `init` and `loss`, so that parameters trained
        on single trials serve it.  Its x is a `Trials`; see `make_trials`.

    Raises:
        TypeError: the estimator has no density; (when called) x is not a
            `Trials`.
        ValueError: (when called) trials of another shape than the simulations,
            or a mask that hides all of them.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> nle = sj.make_nle(prior)
        >>> params = nle.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> trials = sj.make_trials([0.2, 0.5, -0.1], num_padded=10)
        >>> posterior = sj.infer(sj.iid(nle, prior), params, trials)
        >>> posterior.sample(jax.random.key(2), 8).shape
        (8,)

    Reference:
        Geffner, Papamakarios, Mnih. Compositional score modeling for
        simulation-based inference, 2023 (section 3, for products of posteriors).
        Linhart, Cardoso, Gramfort, Le Corff, Rodrigues. Diffusion posterior sampling
        for simulation-based inference in tall data settings, 2024.
        Boelts, Lueckmann, Gao, Macke. Flexible and efficient simulation-based
        inference for models of decision-making, 2022.
    """
    check_record(estimator, Estimator, "estimator", "Make one with make_nle.")
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    score = _score_of_one(estimator, prior)

    def likelihood_of(params: Params, x: Trials) -> Callable[[PyTree, Array], Array]:
        def log_likelihood(theta: PyTree, z: Array) -> Array:
            each = jax.vmap(lambda one: score(params, theta, one))(x.x)
            return jnp.sum(jnp.where(x.mask, each, 0.0))

        return log_likelihood

    def check(x: Trials, example: PyTree) -> Trials:
        if not isinstance(x, Trials):
            raise TypeError(
                f"x must be Trials, got {describe(x)}. Wrap repeated observations "
                "with make_trials(x)."
            )
        return check_trials(x, example)

    def count(x: Trials, bounds: list) -> tuple[Array, Array]:
        outside = jax.vmap(lambda one: num_outside(one, bounds))(x.x)
        num_values = sum(leaf[0].size for leaf in jax.tree.leaves(x.x))
        return jnp.sum(jnp.where(x.mask, outside, 0)), num_values * jnp.sum(x.mask)

    if isinstance(estimator, DiffusionEstimator) and sampler is None:
        sampler = annealed_langevin()
    by_scores = isinstance(estimator, DiffusionEstimator) and is_score_sampler(sampler)
    of_density = None if by_scores else cast(Sampler | None, sampler)
    _, log_prob_fn, sample_fn = unnormalised_posterior(
        prior, of_density, likelihood_of, check=check, count=count
    )
    if by_scores:
        diffusion = cast(DiffusionEstimator, estimator)
        draw = cast(ScoreSampler, sampler)
        sample_fn = _sample_by_scores(diffusion, prior, draw, check, count)
    return Estimator(
        init=estimator.init,
        loss=estimator.loss,
        log_prob=log_prob_fn,
        sample=sample_fn,
    )


def _sample_by_scores(
    estimator: DiffusionEstimator,
    prior: Prior,
    draw: ScoreSampler,
    check: Callable[[Trials, PyTree], Trials],
    count: Callable[[Trials, list], tuple[Array, Array]],
) -> SampleFn:
    """`sample` of a diffusion, in the coordinates w of its `score_of_trials`."""

    def sample_fn(
        params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, SolverInfo]:
        num_samples = check_count(num_samples, "num_samples")
        x = check(x, params.stats.example.x)
        linear = params.stats.theta
        no_features = jnp.zeros(len(linear.slope))
        # w of the prior has the covariance (L^T L)^-1, and log p(w) the score of a
        # normal widened by noise where the prior is one.
        powers, basis = jnp.linalg.eigh(linear.factor.T @ linear.factor)

        def to_z(w: Array) -> Array:
            return from_residual(linear, w, no_features)

        def log_prior(w: Array) -> Array:
            z = to_z(w)
            return prior.log_prob(prior.from_vector(z)) + prior.log_det(z)

        def prior_score(w: Array, noise: Array) -> Array:
            along = jax.grad(log_prior)(w) @ basis
            return basis @ (along / (1.0 + noise**2 * powers))

        def start(key: Array) -> Array:
            z = prior.to_vector(prior.sample(key))
            return to_residual(linear, z, no_features)

        start_key, draw_key = jax.random.split(key)
        w, info = draw(
            draw_key,
            estimator.score_of_trials(params, x),
            prior_score,
            start=jax.vmap(start)(jax.random.split(start_key, num_samples)),
            num_trials=jnp.sum(x.mask),
        )
        outside, entries = count(x, params.stats.x["range"])
        info = info._replace(num_outside=outside, num_entries=entries)
        return jax.vmap(lambda w: prior.from_vector(to_z(w)))(w), info

    return sample_fn


def _score_of_one(
    estimator: Estimator | LikelihoodEstimator | RatioEstimator, prior: Prior
) -> LogProbFn:
    """log p(x | theta) of one trial, up to a function of x."""
    if isinstance(estimator, LikelihoodEstimator):
        return estimator.log_likelihood
    if isinstance(estimator, RatioEstimator):
        return estimator.log_ratio
    if estimator.log_prob is None:
        raise TypeError(
            "repeated trials need an estimator with a density; this one has none."
        )
    log_prob = estimator.log_prob

    def log_ratio_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
        return log_prob(params, theta, x) - prior.log_prob(theta)

    return log_ratio_fn
