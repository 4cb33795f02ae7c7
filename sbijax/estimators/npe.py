"""Neural posterior estimation.

A conditional density q_phi is fitted to pairs (theta, x) by

    phi* = argmin -E_{p(theta) p(x | theta)} log q_phi(theta | x),

and q_phi*(theta | x_o) is the posterior of any x_o in one pass.  The density
lives on y in R^D, the white residual of a linear regression of
z = to_vector(theta) on the standardised x: draws never leave the prior's
support, and where theta and x are jointly Gaussian the untrained flow is
already the posterior.
"""

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    Density,
    Estimator,
    Network,
    Params,
    Prior,
    PyTree,
    SampleInfo,
    Simulations,
    Standardizer,
    Stats,
)
from sbijax.checks import check_like, check_network, check_record, describe
from sbijax.densities import nsf_autoregressive
from sbijax.estimators._data import (
    count_invalid_theta,
    flatten,
    num_entries,
    num_outside,
    observed_range,
    split_example,
)
from sbijax.losses import negative_log_density
from sbijax.networks import resnet, robust
from sbijax.networks.linear import fit_linear, from_residual, to_residual

__all__ = ["make_npe"]


def make_npe(
    prior: Prior,
    *,
    density: Density | None = None,
    embedding: Network | None = None,
    standardizer: Standardizer | None = None,
) -> Estimator:
    """Make an amortized neural posterior estimator.

    Args:
        prior: the prior that theta was drawn from.
        density: conditional density on R^D, by default `nsf_autoregressive()`.
        embedding: network from one standardised x (its pytree) to a context
            vector `[H]`, trained together with the density; by default a
            residual network on the joined leaves of x, `H = 32`.
        standardizer: applied to x before the embedding, by default `robust()`.

    Returns:
        The estimator; `log_prob` is an exact, normalised density.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: (when called) theta or x do not look like the simulations,
            or the context is not a vector.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> npe = sj.make_npe(prior)
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> theta, info = npe.sample(params, jax.random.key(2), 0.3, num_samples=7)
        >>> theta.shape
        (7,)

    Reference:
        Papamakarios, Murray. Fast epsilon-free inference of simulation models
        with Bayesian conditional density estimation, 2016.
        Greenberg, Nonnenmacher, Macke. Automatic posterior transformation for
        likelihood-free inference, 2019.
    """
    density = nsf_autoregressive() if density is None else density
    if embedding is None:
        embedding = resnet(32, hidden_size=128, num_blocks=3, activation=jax.nn.relu)
    standardizer = robust() if standardizer is None else standardizer
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    check_record(density, Density, "density", "Make one with densities.nsf() or maf().")
    check_network(embedding, "embedding")
    check_record(
        standardizer,
        Standardizer,
        "standardizer",
        "Make one with networks.robust() or zscore().",
    )

    def init_fn(key: Array, sims: Simulations) -> Params:
        embedding_key, density_key = jax.random.split(key)
        example, sims = split_example(sims)
        theta, x, weight = sims
        z = jax.vmap(prior.to_vector)(theta)
        scale = standardizer.fit(x, weight)
        features = jax.vmap(lambda v: flatten(standardizer.forward(scale, v)))(x)
        stats = Stats(
            example=example,
            theta=fit_linear(features, z, weight),
            x={"scale": scale, "range": observed_range(x)},
            num_outside=count_invalid_theta(prior, sims),
        )
        value = standardizer.forward(scale, example.x)
        embedding_net = embedding.init(embedding_key, value)
        context = embedding.apply(embedding_net, value)
        if jnp.ndim(context) != 1:
            raise ValueError(
                "embedding must map one x to a vector [H], got "
                f"{describe(context)} for x {describe(example.x)}."
            )
        net = {
            "embedding": embedding_net,
            "density": density.init(density_key, z[0], context),
        }
        return Params(net, stats)

    def see(params: Params, x: PyTree) -> tuple[Array, Array]:
        """Context of the density, and features of the regression."""
        value = standardizer.forward(params.stats.x["scale"], x)
        features = flatten(value)
        context = embedding.apply(params.net["embedding"], value)
        return context.astype(features.dtype), features

    def log_density(params: Params, theta: PyTree, x: PyTree) -> Array:
        """log q(theta | x) for a theta inside the support."""
        z = prior.to_vector(theta)
        context, features = see(params, x)
        y = to_residual(params.stats.theta, z, features)
        log_q = density.log_prob(params.net["density"], y, context)
        return log_q + params.stats.theta.log_det - prior.log_det(z)

    def log_prob_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
        example = params.stats.example
        theta = check_like(theta, example.theta, "theta")
        x = check_like(x, example.x, "x")
        inside = prior.log_prob(theta) > -jnp.inf
        safe = jax.tree.map(
            lambda leaf, default: jnp.where(inside, leaf, default), theta, example.theta
        )
        return jnp.where(inside, log_density(params, safe, x), -jnp.inf)

    def sample_fn(
        params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, SampleInfo]:
        x = check_like(x, params.stats.example.x, "x")
        context, features = see(params, x)
        y = density.sample(
            params.net["density"], key, context, shape=(num_samples, prior.num_dims)
        )
        z = jax.vmap(lambda y: from_residual(params.stats.theta, y, features))(y)
        info = SampleInfo(
            num_invalid=jnp.sum(~jnp.all(jnp.isfinite(y), axis=1)),
            num_outside=num_outside(x, params.stats.x["range"]),
            num_entries=num_entries(x),
        )
        return jax.vmap(prior.from_vector)(z), info

    return Estimator(
        init=init_fn,
        loss=negative_log_density(log_density),
        log_prob=log_prob_fn,
        sample=sample_fn,
    )
