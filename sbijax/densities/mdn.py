"""Mixture density network: Gaussians with full covariance.

    q(y | c) = sum_k pi_k(c) N(y; m_k(c), (A_k(c)^T A_k(c))^{-1}),

with A_k upper triangular with positive diagonal, so that the density needs no
inverse and a draw needs one triangular solve.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from sbijax.base import Array, Density, Network, PyTree
from sbijax.checks import check_count
from sbijax.networks import resnet
from sbijax.noise import normal

__all__ = ["mdn"]


def mdn(
    *,
    num_components: int = 8,
    network: Callable[[int], Network] | None = None,
) -> Density:
    """Mixture of full-covariance Gaussians whose parameters a network gives.

    Args:
        num_components: number of Gaussians, at least 1.
        network: makes, for a number of outputs, the network of the context;
            by default a residual network.

    Raises:
        ValueError: fewer than one component.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.densities import mdn
        >>> density, y, context = mdn(), jnp.zeros(2), jnp.zeros(3)
        >>> net = density.init(jax.random.key(0), y, context)
        >>> density.log_prob(net, y, context).shape
        ()

    Reference:
        Bishop. Mixture density networks, 1994.
        Papamakarios, Murray. Fast epsilon-free inference of simulation models
        with Bayesian conditional density estimation, 2016.
    """
    num_components = check_count(num_components, "num_components")

    def make_network(num_dims: int) -> Network:
        per_component = 1 + num_dims + num_dims * (num_dims + 1) // 2
        num_outputs = num_components * per_component
        return resnet(num_outputs) if network is None else network(num_outputs)

    def mixture(net: PyTree, context: Array, num_dims: int) -> tuple[Array, ...]:
        """Log weights `[K]`, means `[K, D]` and factors `[K, D, D]`."""
        out = make_network(num_dims).apply(net, context).reshape(num_components, -1)
        log_weight, mean, rest = jnp.split(out, [1, 1 + num_dims], axis=1)
        rows, cols = np.triu_indices(num_dims)
        factor = jnp.zeros((num_components, num_dims, num_dims))
        factor = factor.at[:, rows, cols].set(rest)
        diagonal = jnp.arange(num_dims)
        positive = jax.nn.softplus(factor[:, diagonal, diagonal]) + 1e-4
        factor = factor.at[:, diagonal, diagonal].set(positive)
        return jax.nn.log_softmax(log_weight[:, 0]), mean, factor

    def init_fn(key: Array, y: Array, context: Array) -> PyTree:
        return make_network(y.size).init(key, context)

    def log_prob_fn(net: PyTree, y: Array, context: Array) -> Array:
        log_weight, mean, factor = mixture(net, context, y.size)
        noise = jnp.einsum("kij,kj->ki", factor, y - mean)
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
        each = jnp.sum(norm.logpdf(noise), axis=1) + log_det
        return jax.nn.logsumexp(log_weight + each)

    def sample_fn(
        net: PyTree, key: Array, context: Array, *, shape: tuple[int, int]
    ) -> Array:
        component_key, noise_key = jax.random.split(key)
        log_weight, mean, factor = mixture(net, context, shape[1])
        k = jax.random.categorical(component_key, log_weight, shape=shape[:1])
        noise = normal(noise_key, shape, context.dtype)
        solve = jax.vmap(jax.scipy.linalg.solve_triangular)
        return mean[k] + solve(factor[k], noise)

    return Density(init_fn, log_prob_fn, sample_fn)
