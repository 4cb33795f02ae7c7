"""Draws that have weights: resampling, and how many draws they are worth."""

import jax
import jax.numpy as jnp

from sbijax.base import Array

__all__ = ["draw_weighted", "resample"]


def resample(key: Array, weights: Array, num_samples: int) -> Array:
    """Systematic resampling: indices `[S]`, in order, never of a weight that is zero.

    The sums of weights are rounded, each in its own way, so that BlackJAX's
    resampling picks candidates without weight now and then.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.samplers.weights import resample
        >>> resample(jax.random.key(0), jnp.array([0.0, 0.5, 0.0, 0.5]), 4).tolist()
        [1, 1, 3, 3]
    """
    num = weights.size
    sums = jax.lax.cummax(jnp.cumsum(weights))
    shift = jax.random.uniform(key, (), weights.dtype)
    points = sums[-1] * (jnp.arange(num_samples) + shift) / num_samples
    picked = jnp.searchsorted(sums, points, side="right")
    # The next candidate before it that has weight, or the first one of all.
    has_weight = weights > 0
    before = jax.lax.cummax(jnp.where(has_weight, jnp.arange(num), -1))
    index = before[jnp.minimum(picked, num - 1)]
    return jnp.where(index < 0, jnp.argmax(has_weight), index)


def draw_weighted(
    key: Array, z: Array, weights: Array, num_samples: int
) -> tuple[Array, Array]:
    """Draws `[S, D]` of points `[N, D]` in random order, and their effective number.

    The number is Kish's, 1 / sum w^2 for weights that sum to 1, at most S.

    Reference:
        Kish. Survey sampling, 1965.
    """
    resample_key, order_key = jax.random.split(key)
    index = resample(resample_key, weights, num_samples)
    draws = z[jax.random.permutation(order_key, index)]
    return draws, jnp.minimum(1.0 / jnp.sum(weights**2), num_samples)
