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

from sbijax.base import (
    Array,
    Density,
    Estimator,
    Network,
    Prior,
    PyTree,
    SampleInfo,
    Standardizer,
)
from sbijax.checks import check_record
from sbijax.data import count_invalid
from sbijax.densities import nsf_autoregressive
from sbijax.estimators._latent import make_latent
from sbijax.losses import negative_log_density
from sbijax.networks import resnet

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
            vector `[H]`, trained together with the density; by default a residual
            network on the joined entries of x and what a linear regression on them
            predicts, each scaled by how much it has to do with theta, and for
            `Trials` a `networks.deep_set`; `H = 32`.
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
    check_record(density, Density, "density", "Make one with densities.nsf() or maf().")
    of_entries = resnet(32, hidden_size=128, num_blocks=3, activation=jax.nn.relu)
    latent = make_latent(prior, embedding, standardizer, of_entries=of_entries)

    def draw(
        net: PyTree, key: Array, context: Array, *, shape: tuple[int, int]
    ) -> tuple[Array, SampleInfo]:
        y = density.sample(net, key, context, shape=shape)
        return y, SampleInfo(num_invalid=count_invalid(y))

    return Estimator(
        init=latent.init(density.init),
        loss=negative_log_density(latent.log_density(density.log_prob)),
        log_prob=latent.log_prob(density.log_prob),
        sample=latent.sample(draw),
    )
