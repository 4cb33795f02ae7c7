"""Neural likelihood estimation.

A conditional density q_phi is fitted to pairs (theta, x) by

    phi* = argmin -E_{p(theta) p(x | theta)} log q_phi(x | theta),

and a sampler draws from p(theta) q_phi*(x_o | theta).  The density lives on
y in R^K, the white residual of a linear regression of the standardised x on
theta: where they are jointly Gaussian the untrained flow is already the
likelihood.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sbijax.base import (
    Array,
    Density,
    LikelihoodEstimator,
    Network,
    Params,
    Prior,
    PyTree,
    Sampler,
    Simulations,
    Standardizer,
    Stats,
)
from sbijax.checks import check_like, check_network, check_record, describe
from sbijax.densities import maf
from sbijax.estimators._data import (
    count_invalid_theta,
    flatten,
    observed_range,
    split_example,
)
from sbijax.estimators._unnormalised import unnormalised_posterior
from sbijax.losses import negative_log_density
from sbijax.networks import resnet, robust
from sbijax.networks.linear import fit_linear, from_residual, to_residual
from sbijax.samplers import tempered_smc

__all__ = ["make_nle"]


def make_nle(
    prior: Prior,
    *,
    density: Density | None = None,
    embedding: Network | None = None,
    standardizer: Standardizer | None = None,
    sampler: Sampler | None = None,
) -> LikelihoodEstimator:
    """Make a neural likelihood estimator.

    Args:
        prior: the prior of theta.
        density: conditional density on R^K, with K the number of entries of x;
            by default `maf()`.
        embedding: network from the vector form z of theta `[D]` and the
            standardised theta (its pytree) to a context vector `[H]`, trained
            together with the density.
        standardizer: applied to x; it must know its log-determinant.  By
            default `robust()`.
        sampler: draws from the posterior, by default `tempered_smc()`.

    Returns:
        The estimator; `log_prob` is not normalised over theta.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: (when called) theta or x do not look like the simulations,
            or the context is not a vector.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> nle = sj.make_nle(prior)
        >>> params = nle.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> nle.emulate(params, jax.random.key(2), 0.3).shape
        ()

    Reference:
        Papamakarios, Sterratt, Murray. Sequential neural likelihood: fast
        likelihood-free inference with autoregressive flows, 2019.
    """
    density = maf() if density is None else density
    if embedding is None:
        embedding = resnet(32, hidden_size=128, num_blocks=3)
    standardizer = robust() if standardizer is None else standardizer
    sampler = tempered_smc() if sampler is None else sampler
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    check_record(density, Density, "density", "Make one with densities.maf() or nsf().")
    check_network(embedding, "embedding")
    check_record(
        standardizer,
        Standardizer,
        "standardizer",
        "Make one with networks.robust() or zscore().",
    )
    theta_scale = robust()

    def init_fn(key: Array, sims: Simulations) -> Params:
        embedding_key, density_key = jax.random.split(key)
        example, sims = split_example(sims)
        theta, x, weight = sims
        z = jax.vmap(prior.to_vector)(theta)
        scale = standardizer.fit(x, weight)
        targets = jax.vmap(lambda v: flatten(standardizer.forward(scale, v)))(x)
        stats = Stats(
            example=example,
            theta=theta_scale.fit(theta, weight),
            x={
                "scale": scale,
                "range": observed_range(x),
                "linear": fit_linear(z, targets, weight),
            },
            num_outside=count_invalid_theta(prior, sims),
        )
        inputs = see(stats, example.theta)
        embedding_net = embedding.init(embedding_key, *inputs)
        context = embedding.apply(embedding_net, *inputs)
        if jnp.ndim(context) != 1:
            raise ValueError(
                "embedding must map one theta to a vector [H], got "
                f"{describe(context)} for theta {describe(example.theta)}."
            )
        net = {
            "embedding": embedding_net,
            "density": density.init(density_key, targets[0], context),
        }
        return Params(net, stats)

    def see(stats: Stats, theta: PyTree) -> tuple[Array, PyTree]:
        """What the embedding gets: the vector form and the standardised theta."""
        return prior.to_vector(theta), theta_scale.forward(stats.theta, theta)

    def embed(params: Params, theta: PyTree) -> tuple[Array, Array]:
        """Context of the density, and features of the regression."""
        z, scaled = see(params.stats, theta)
        context = embedding.apply(params.net["embedding"], z, scaled)
        return context.astype(z.dtype), z

    def likelihood_of(params: Params, x: PyTree) -> Callable[[PyTree], Array]:
        scale = params.stats.x["scale"]
        target = flatten(standardizer.forward(scale, x))
        log_det = standardizer.log_det(scale, x) + params.stats.x["linear"].log_det

        def log_likelihood(theta: PyTree) -> Array:
            context, z = embed(params, theta)
            y = to_residual(params.stats.x["linear"], target, z)
            return density.log_prob(params.net["density"], y, context) + log_det

        return log_likelihood

    def emulate_fn(params: Params, key: Array, theta: PyTree) -> PyTree:
        example = params.stats.example
        theta = check_like(theta, example.theta, "theta")
        scale = params.stats.x["scale"]
        context, z = embed(params, theta)
        like, unflatten = ravel_pytree(standardizer.forward(scale, example.x))
        y = density.sample(params.net["density"], key, context, shape=(1, like.size))[0]
        value = unflatten(from_residual(params.stats.x["linear"], y, z))
        return standardizer.inverse(scale, value)

    log_likelihood_fn, log_prob_fn, sample_fn = unnormalised_posterior(
        prior, sampler, likelihood_of
    )
    return LikelihoodEstimator(
        init=init_fn,
        loss=negative_log_density(
            lambda params, theta, x: likelihood_of(params, x)(theta)
        ),
        log_prob=log_prob_fn,
        sample=sample_fn,
        log_likelihood=log_likelihood_fn,
        emulate=emulate_fn,
    )
