"""Linear regression with Gaussian residuals, the baseline a flow starts from.

Ridge regression of the targets on the features, and the Cholesky factor of the
residual covariance,

    y = L^{-1} (z - m - W^T f(x)),   L L^T = Cov[z - m - W^T f(x)],

leave residuals y that are white.  If z and f(x) are jointly Gaussian this is
all there is to learn, and a density on y that starts as a standard normal
starts at the posterior.

The penalty of the regression is the one that predicts best under generalised
cross-validation: that with the smallest log det C / (1 - d / N)^2, for the covariance
C of the residuals and d degrees of freedom.  The covariance of new residuals is
larger than that of the fitted ones by as much.  Among penalties that predict equally
well the largest is taken: rounding would choose between them otherwise.

Reference:
    Golub, Heath, Wahba. Generalized cross-validation as a method for choosing a good
    ridge parameter, 1979.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array

__all__ = ["LinearStats", "exact_matmul", "fit_linear", "from_residual", "predict"]
__all__ += ["stride", "to_residual"]

_PENALTIES = np.append(np.logspace(-3, 1, 17), np.inf)
_MAX_SPENT = 0.1  # degrees of freedom per row
_MAX_FEATURES = 512
_MAX_NUMBERS = 50_000_000
_MIN_VARIANCE = 1e-4
_EQUALLY_WELL = 0.05  # twice the nats over all rows


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

    The penalty is at least as large as it takes to spend one degree of freedom on ten
    rows: what is fitted to noise enters the residual, and an embedding would have to
    undo it.  With more than 512 features the targets are only centred and whitened.
    Of more than 50 million features in all, every second row is used, or fewer.

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
    step = stride(*features.shape)
    features, targets, weight = (a[::step] for a in (features, targets, weight))
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    loc = share @ targets
    scale = jnp.sqrt(share @ (targets - loc) ** 2)
    scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
    z = (targets - loc) / scale
    num_rows = jnp.maximum(jnp.sum(weight > 0), 1)
    num_features = features.shape[1]
    slope = jnp.zeros((num_features, z.shape[1]), z.dtype)
    spent = 1.0 / num_rows  # by the mean
    if 0 < num_features <= _MAX_FEATURES:
        f = features - share @ features
        slope, spent = _best_slope(f, z, share, num_rows)
        z = z - f @ slope
        loc = loc - scale * (share @ features @ slope)
    covariance = (share[:, None] * z).T @ z / _kept(spent) ** 2
    eye = jnp.eye(z.shape[1], dtype=z.dtype)
    factor = jnp.linalg.cholesky(covariance + _MIN_VARIANCE * eye)
    inverse = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    return LinearStats(loc, scale, slope, factor, inverse)


def stride(num_rows: int, num_features: int) -> int:
    """Step between rows that keeps the copies of a large matrix small."""
    return max(1, num_rows * num_features // _MAX_NUMBERS)


def _best_slope(
    f: Array, z: Array, share: Array, num_rows: Array
) -> tuple[Array, Array]:
    """Slope `[F, D]` of the best penalty, and the degrees of freedom per row.

    Everything follows from the moments of the centred `f` and `z`.
    """
    weighted = share[:, None] * f
    square = exact_matmul((share[:, None] * z).T, z)
    eye = _MIN_VARIANCE * jnp.eye(len(square), dtype=z.dtype)
    values, vectors = jnp.linalg.eigh(exact_matmul(weighted.T, f))
    values = jnp.maximum(values, 0.0)
    cross = exact_matmul(vectors.T, exact_matmul(weighted.T, z))

    def judge(penalty: Array) -> tuple[Array, Array, Array]:
        slope = cross / (values + penalty)[:, None]
        spent = (1.0 + jnp.sum(values / (values + penalty))) / num_rows
        explained = exact_matmul(cross.T, slope)
        shrunk = exact_matmul(slope.T, values[:, None] * slope)
        left = square - explained - explained.T + shrunk
        factor = jnp.linalg.cholesky(left + eye)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        score = log_det - 2 * len(square) * jnp.log(_kept(spent))
        allowed = (spent <= _MAX_SPENT) | jnp.isinf(penalty)
        allowed &= jnp.isfinite(score)  # rounding may leave no covariance
        return jnp.where(allowed, score, jnp.inf), exact_matmul(vectors, slope), spent

    scores, slopes, spent = jax.vmap(judge)(jnp.asarray(_PENALTIES, z.dtype))
    good = scores <= jnp.min(scores) + _EQUALLY_WELL / num_rows
    best = len(_PENALTIES) - 1 - jnp.argmax(good[::-1])
    return slopes[best], spent[best]


def exact_matmul(a: Array, b: Array | np.ndarray) -> Array:
    """A product in full precision; accelerators round to fewer bits by default."""
    return jnp.matmul(a, b.astype(a.dtype), precision="highest")


def _kept(spent: Array) -> Array:
    """Share of the degrees of freedom that is left, one half at least."""
    return jnp.maximum(1.0 - spent, 0.5)


def predict(stats: LinearStats, features: Array) -> Array:
    """What the features `[F]` tell of the target `[D]`, in its standard deviations."""
    return features @ stats.slope


def to_residual(stats: LinearStats, z: Array, features: Array) -> Array:
    """White residual `[D]` of one target `[D]` given its features `[F]`."""
    return stats.inverse @ ((z - stats.loc) / stats.scale - predict(stats, features))


def from_residual(stats: LinearStats, y: Array, features: Array) -> Array:
    """The target of a residual: the inverse of `to_residual`."""
    return stats.loc + stats.scale * (predict(stats, features) + stats.factor @ y)
