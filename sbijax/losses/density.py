"""Objective of methods that fit a normalised density.

    L(phi) = -sum_n w_n log q_phi(theta_n, x_n) / sum_n w_n,

where q is q(theta | x) for neural posterior estimation, q(x | theta) for neural
likelihood estimation.  Its minimum over all q is the true conditional density
under the distribution that the simulations were drawn from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbijax.base import Array, LossFn, Params, PyTree, Simulations
from sbijax.data import fill_zero_weight

__all__ = ["negative_log_density"]


def negative_log_density(
    log_density: Callable[[Params, PyTree, PyTree], Array],
) -> LossFn:
    """Weighted mean of -log q over a batch.

    Args:
        log_density: `(params, theta, x) -> scalar` for one theta and one x.

    Returns:
        A loss of `(params, key, batch)`; it uses no randomness.  A batch
        without weight has loss 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import negative_log_density
        >>> batch = Simulations(jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.ones(2))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> loss = negative_log_density(lambda params, theta, x: -theta)
        >>> float(loss(params, jax.random.key(0), batch))
        1.5

    Reference:
        Papamakarios, Murray. Fast epsilon-free inference of simulation models
        with Bayesian conditional density estimation, 2016.
        Papamakarios, Sterratt, Murray. Sequential neural likelihood: fast
        likelihood-free inference with autoregressive flows, 2019.
    """

    def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
        theta, x, weight = fill_zero_weight(batch, params.stats.example)
        log_q = jax.vmap(log_density, in_axes=(None, 0, 0))(params, theta, x)
        total = jnp.sum(weight)
        return -jnp.sum(weight * log_q) / jnp.where(total > 0, total, 1.0)

    return loss_fn
