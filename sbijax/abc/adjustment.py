"""Regression adjustment of accepted particles.

Within the tolerance z depends on the summaries s, and what was accepted at s is moved
to what it would have been at the observation,

    z* = m(s_o) + sigma(s_o) / sigma(s) (z - m(s)),

with m, and sigma where it varies, from a regression weighted by the Epanechnikov kernel
1 - (d / epsilon)^2 of the distance.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbijax.base import Array
from sbijax.checks import check_count, check_positive
from sbijax.noise import normal

__all__ = ["Adjustment", "epanechnikov", "linear_adjustment", "nonlinear_adjustment"]

Adjustment = Callable[[Array, Array, Array, Array], Array]

_MIN_SCALE_RATIO, _MAX_SCALE_RATIO = 0.2, 5.0


def epanechnikov(weights: Array, distances: Array) -> Array:
    """Weights `[N]` times 1 - (d / epsilon)^2, summing to 1; unchanged if all d are 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc.adjustment import epanechnikov
        >>> epanechnikov(jnp.ones(2) / 2, jnp.array([0.0, 1.0])).tolist()
        [1.0, 0.0]
    """
    largest = jnp.max(jnp.where(weights > 0, distances, 0.0))
    ratio = distances / jnp.where(largest > 0, largest, 1.0)
    share = jnp.where(weights > 0, weights * (1.0 - ratio**2), 0.0)
    total = jnp.sum(share)
    return jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), weights)


def linear_adjustment(*, ridge: float = 1e-4) -> Adjustment:
    """Local linear regression: exact where theta and x are jointly normal.

    Args:
        ridge: penalty on slopes, for standardised summaries.

    Returns:
        A function of z `[N, D]`, s `[N, K]`, the observed s `[K]` and weights `[N]`
        that sum to 1, to adjusted z `[N, D]`.

    Raises:
        TypeError, ValueError: a ridge that is no positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import linear_adjustment
        >>> s = jnp.linspace(-1.0, 1.0, 9)[:, None]
        >>> z = linear_adjustment()(2.0 * s, s, jnp.array([0.5]), jnp.ones(9) / 9)
        >>> bool(jnp.max(jnp.abs(z - 1.0)) < 1e-2)
        True

    Reference:
        Beaumont, Zhang, Balding. Approximate Bayesian computation in population
        genetics, 2002.
    """
    ridge = check_positive(ridge, "ridge")

    def adjust(z: Array, s: Array, observed: Array, weights: Array) -> Array:
        rows, at = _standardise(s, observed, weights)
        mean = _regress(rows, z, weights, ridge)
        return z + mean(at) - mean(rows)

    return adjust


def nonlinear_adjustment(*, num_units: int = 50, ridge: float = 1e-3) -> Adjustment:
    """Non-linear regression of the mean, and of a scale that depends on s.

    The regression is on s and on `num_units` hidden units tanh(a^T s + b) with
    random a and b, so that the weights are found in closed form.

    Args:
        num_units: hidden units.
        ridge: penalty on slopes, for standardised summaries.

    Returns:
        A function as that of `linear_adjustment`.

    Raises:
        TypeError, ValueError: no units, or a ridge that is no positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import nonlinear_adjustment
        >>> s = jnp.linspace(-1.0, 1.0, 99)[:, None]
        >>> z = nonlinear_adjustment()(s**2, s, jnp.array([0.5]), jnp.ones(99) / 99)
        >>> bool(jnp.max(jnp.abs(z - 0.25)) < 0.1)
        True

    Reference:
        Blum, Francois. Non-linear regression models for approximate Bayesian
        computation, 2010.
    """
    num_units = check_count(num_units, "num_units")
    ridge = check_positive(ridge, "ridge")

    def adjust(z: Array, s: Array, observed: Array, weights: Array) -> Array:
        rows, at = _standardise(s, observed, weights)
        slope_key, shift_key = jax.random.split(jax.random.key(0))
        slopes = normal(slope_key, (rows.shape[1], num_units), z.dtype)
        slopes = slopes * (2.0 / rows.shape[1] ** 0.5)
        shifts = 2.0 * jax.random.normal(shift_key, (num_units,), z.dtype)

        def expand(s: Array) -> Array:
            return jnp.concatenate([s, jnp.tanh(s @ slopes + shifts)], axis=1)

        rows, at = expand(rows), expand(at)
        mean = _regress(rows, z, weights, ridge)
        residual = jnp.where(weights[:, None] > 0, z - mean(rows), 0.0)
        tiny = 1e-6 * (weights @ residual**2) + jnp.finfo(z.dtype).tiny ** 0.5
        log_square = _regress(rows, jnp.log(residual**2 + tiny), weights, ridge)
        ratio = jnp.exp(0.5 * (log_square(at) - log_square(rows)))
        ratio = jnp.clip(ratio, _MIN_SCALE_RATIO, _MAX_SCALE_RATIO)
        return mean(at) + ratio * residual

    return adjust


def _standardise(s: Array, observed: Array, weights: Array) -> tuple[Array, Array]:
    """Summaries `[N, K]`, and the observed ones `[1, K]`, of order one."""
    s = jnp.where(weights[:, None] > 0, s, observed)
    loc = weights @ s
    scale = jnp.sqrt(weights @ (s - loc) ** 2)
    scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
    return (s - loc) / scale, ((observed - loc) / scale)[None]


def _regress(
    rows: Array, targets: Array, weights: Array, ridge: float
) -> Callable[[Array], Array]:
    """Weighted ridge regression of `[N, D]` on `[N, K]`, as a function of rows."""
    targets = jnp.where(weights[:, None] > 0, targets, 0.0)
    centre, level = weights @ rows, weights @ targets
    away = rows - centre
    gram = (weights[:, None] * away).T @ away + ridge * jnp.eye(rows.shape[1])
    slope = jax.scipy.linalg.solve(
        gram, (weights[:, None] * away).T @ (targets - level), assume_a="pos"
    )
    return lambda at: level + (at - centre) @ slope
