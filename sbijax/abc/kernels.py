"""Kernels that move the particles of a population.

A population is centres c_j `[C, D]`; new particles are draws of the mixture

    q(z) = 1/C sum_j N(z; c_j, L_j L_j^T).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbijax.base import Array
from sbijax.checks import check_count, check_positive

__all__ = ["Kernel", "local_kernel", "mixture_log_density", "normal_kernel"]

Kernel = Callable[[Array], Array]

_MIN_SHARE = 1e-6  # of the variance of all centres, in every direction
_CHUNK = 250


def normal_kernel(*, scale: float = 2.0) -> Kernel:
    """One normal for all: the covariance of the centres, times `scale`.

    For one mode, or many dimensions.

    Args:
        scale: 2 is the best where the posterior is normal.

    Returns:
        A function from centres `[C, D]` to Cholesky factors `[C, D, D]`.

    Raises:
        TypeError, ValueError: a scale that is no positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import normal_kernel
        >>> normal_kernel()(jnp.arange(10.0)[:, None]).shape
        (10, 1, 1)

    Reference:
        Beaumont, Cornuet, Marin, Robert. Adaptive approximate Bayesian computation,
        2009.
    """
    scale = check_positive(scale, "scale")

    def fit(centres: Array) -> Array:
        factor = jnp.linalg.cholesky(scale * _covariance(centres))
        return jnp.broadcast_to(factor, (len(centres), *factor.shape))

    return fit


def local_kernel(*, num_neighbours: int = 50, scale: float = 1.0) -> Kernel:
    """A normal for each centre: the second moments of its neighbours around it.

    It follows modes and curved ridges, where one covariance would mostly leave them.

    Args:
        num_neighbours: nearest centres, in units of the covariance of all; fewer
            where there are fewer centres.
        scale: factor of the moments.

    Returns:
        A function from centres `[C, D]` to Cholesky factors `[C, D, D]`.

    Raises:
        TypeError, ValueError: fewer than 2 neighbours, or a scale that is no
            positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import local_kernel
        >>> local_kernel(num_neighbours=3)(jnp.arange(10.0)[:, None]).shape
        (10, 1, 1)

    Reference:
        Filippi, Barnes, Cornebise, Stumpf. On optimality of kernels for approximate
        Bayesian computation using sequential Monte Carlo, 2013.
    """
    num_neighbours = check_count(num_neighbours, "num_neighbours", least=2)
    scale = check_positive(scale, "scale")

    def fit(centres: Array) -> Array:
        covariance = _covariance(centres)
        factor = jnp.linalg.cholesky(covariance)
        white = jax.scipy.linalg.solve_triangular(factor, centres.T, lower=True).T
        size = jnp.sum(white**2, axis=1)
        closeness = 2.0 * white @ white.T - size[:, None] - size
        _, nearest = jax.lax.top_k(closeness, min(num_neighbours, len(centres)))
        away = centres[nearest] - centres[:, None]
        moments = jnp.einsum("cki,ckj->cij", away, away) / nearest.shape[1]
        return jnp.linalg.cholesky(scale * moments + _MIN_SHARE * covariance)

    return fit


def mixture_log_density(centres: Array, factors: Array, z: Array) -> Array:
    """log q `[n]` at z `[n, D]`, chunk by chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc.kernels import mixture_log_density
        >>> at = jnp.zeros((1, 1))
        >>> round(float(mixture_log_density(at, at[None] + 1.0, at)[0]), 4)
        -0.9189
    """
    size, num_dims = centres.shape
    eye = jnp.eye(num_dims, dtype=z.dtype)
    inverse = jax.vmap(
        lambda factor: jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    )(factors)
    height = jnp.sum(jnp.log(jnp.diagonal(inverse, axis1=1, axis2=2)), axis=1)
    height = height - 0.5 * num_dims * math.log(2.0 * math.pi) - math.log(size)
    # One product of matrices for all centres.
    rows = inverse.reshape(size * num_dims, num_dims)
    offset = jnp.einsum("cij,cj->ci", inverse, centres).ravel()

    def log_density(z: Array) -> Array:
        white = (rows @ z - offset).reshape(size, num_dims)
        return jax.nn.logsumexp(height - 0.5 * jnp.sum(white**2, axis=1))

    return jax.lax.map(log_density, z, batch_size=_CHUNK)


def _covariance(centres: Array) -> Array:
    """Covariance `[D, D]`, with a little more on the diagonal."""
    away = centres - jnp.mean(centres, axis=0)
    covariance = away.T @ away / len(centres)
    floor = _MIN_SHARE * jnp.trace(covariance) / len(covariance)
    floor = jnp.maximum(floor, jnp.finfo(centres.dtype).tiny ** 0.5)
    return covariance + floor * jnp.eye(len(covariance), dtype=centres.dtype)
