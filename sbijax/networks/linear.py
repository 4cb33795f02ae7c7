"""Linear regression with Gaussian residuals, the baseline a flow starts from.

Ridge regression of the targets on the features, and the Cholesky factor of the
residual covariance,

    y = L^{-1} (z - m - W^T f(x)),   L L^T = Cov[z - m - W^T f(x)],

leave residuals y that are white.  If z and f(x) are jointly Gaussian this is
all there is to learn, and a density on y that starts as a standard normal
starts at the posterior.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array

__all__ = ["LinearStats", "fit_linear", "from_residual", "to_residual"]

_RIDGE = 1e-3
_MIN_ROWS_PER_FEATURE = 10
_MAX_FEATURES = 64
_MIN_VARIANCE = 1e-4


class LinearStats(NamedTuple):
    """`loc` and `scale` `[D]`, `slope` `[F, D]`, `factor` and its inverse `[D, D]`."""

    loc: Array
    scale: Array
    slope: Array
    factor: Array
    inverse: Array

    @property
    def log_det(self) -> Array:
        """log |dy / dz|, a constant."""
        diagonal = jnp.log(jnp.diagonal(self.factor))
        return -jnp.sum(diagonal) - jnp.sum(jnp.log(self.scale))


def fit_linear(features: Array, targets: Array, weight: Array) -> LinearStats:
    """Fit targets `[N, D]` on features `[N, F]` by weighted ridge regression.

    With fewer than ten rows per feature, or more than 64 features, the slope is
    zero and the targets are only centred and whitened: the noise of many pixels
    enters the residual, and an embedding has to undo it.

    Args:
        features: `[N, F]`, of order one.
        targets: `[N, D]`.
        weight: `[N]`; rows of weight 0 must be finite and have no effect.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks.linear import fit_linear, to_residual
        >>> f = jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> stats = fit_linear(f, 3.0 * f + 1.0, jnp.ones(50))
        >>> bool(abs(to_residual(stats, jnp.array([4.0]), jnp.array([1.0]))[0]) < 0.5)
        True
    """
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    loc = share @ targets
    scale = jnp.sqrt(share @ (targets - loc) ** 2)
    scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
    z = (targets - loc) / scale
    num_features = features.shape[1]
    slope = jnp.zeros((num_features, z.shape[1]), z.dtype)
    if 0 < num_features <= _MAX_FEATURES:
        f = features - share @ features
        gram = (share[:, None] * f).T @ f + _RIDGE * jnp.eye(num_features)
        solved = jax.scipy.linalg.solve(
            gram, (share[:, None] * f).T @ z, assume_a="pos"
        )
        enough = jnp.sum(weight > 0) >= _MIN_ROWS_PER_FEATURE * num_features
        slope = jnp.where(enough, solved, slope)
        z = z - f @ slope
        loc = loc - scale * (share @ features @ slope)
    covariance = (share[:, None] * z).T @ z
    eye = jnp.eye(z.shape[1], dtype=z.dtype)
    factor = jnp.linalg.cholesky(covariance + _MIN_VARIANCE * eye)
    inverse = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    return LinearStats(loc, scale, slope, factor, inverse)


def to_residual(stats: LinearStats, z: Array, features: Array) -> Array:
    """White residual `[D]` of one target `[D]` given its features `[F]`."""
    return stats.inverse @ ((z - stats.loc) / stats.scale - features @ stats.slope)


def from_residual(stats: LinearStats, y: Array, features: Array) -> Array:
    """The target of a residual: the inverse of `to_residual`."""
    return stats.loc + stats.scale * (features @ stats.slope + stats.factor @ y)
