"""Quantile functions in a table, for distributions whose own are found by iteration.

The bijection of a prior turns normals into draws in every step of every sampler.  The
quantiles of a gamma, a beta or a Student's t distribution take hundreds of steps of an
iteration each time.  A table with a rational quadratic in every bin is a bijection as
well, has an inverse and a slope in closed form, and gives up little: its image of a
normal z is the quantile of z to 1e-5, and to 1e-3 in the tails of a Cauchy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats
from scipy.special import ndtr

from sbijax.base import Array
from sbijax.densities.elementwise import rational_quadratic, rational_quadratic_inverse

__all__ = ["QuantileTable", "tabulate"]

_BOUND = 8.0  # beyond, with a probability of 1e-15, the map goes on as a line
_WIDTH = 0.125
_KNOTS = np.arange(-_BOUND, _BOUND + _WIDTH, _WIDTH)

# Names of the parameters by which scipy knows the distribution.
_PARAMETERS: dict[type, tuple[str, ...]] = {
    dist.Gamma: ("concentration", "rate"),
    dist.Chi2: ("concentration", "rate"),
    dist.InverseGamma: ("concentration", "rate"),
    dist.Beta: ("concentration1", "concentration0"),
    dist.BetaProportion: ("concentration1", "concentration0"),
    dist.StudentT: ("df", "loc", "scale"),
}


class QuantileTable(NamedTuple):
    """An increasing map from normals to the real line, for n distributions.

    `value` at the K knots `[K, n]`; `rise`, the mean slopes of the bins `[K - 1, n]`;
    `left` and `right`, the slopes at the ends of each as multiples of that.  The real
    line is that of numpyro's `biject_to`: logarithms of positive values, logits of
    shares.
    """

    value: np.ndarray
    rise: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def forward(self, z: Array, columns: np.ndarray) -> tuple[Array, Array]:
        """Values at the normals `z` and log-slopes; `columns` says of which map."""
        near = jnp.clip(z, -_BOUND, _BOUND)
        bin_ = jnp.floor((near + _BOUND) / _WIDTH).astype(int)
        bin_ = jnp.clip(bin_, 0, len(self.rise) - 1)
        value, rise, left, right = self._take(bin_, columns)
        xi = (near - jnp.asarray(_KNOTS, float)[bin_]) / _WIDTH
        share, log_slope = rational_quadratic(xi, 1.0, 1.0, left, right)
        log_slope = log_slope + jnp.log(rise)
        # Beyond the last knots the slope stays as it is there.
        beyond = (z - near) * jnp.exp(log_slope)
        return value + _WIDTH * rise * share + beyond, log_slope

    def inverse(self, value: Array, columns: np.ndarray) -> Array:
        """Normals `z` whose image is `value`."""
        knots = jnp.asarray(self.value, float)[:, columns]
        near = jnp.clip(value, knots[0], knots[-1])
        bin_ = jnp.sum(near >= knots[1:-1], axis=0)
        low, rise, left, right = self._take(bin_, columns)
        share = (near - low) / (_WIDTH * rise)
        xi = rational_quadratic_inverse(share, 1.0, 1.0, left, right)
        z = jnp.asarray(_KNOTS, float)[bin_] + _WIDTH * xi
        return z + (value - near) / (rise * jnp.where(value < near, left, right))

    def _take(self, bin_: Array, columns: np.ndarray) -> tuple[Array, ...]:
        return tuple(jnp.asarray(part, float)[bin_, columns] for part in self)


def tabulate(d: dist.Distribution) -> QuantileTable | None:
    """The table of a univariate distribution, of one column for each of its batch.

    Returns:
        The table, or None where the quantiles have a closed form or no known one,
        where parameters are traced, or where a value is out of range.

    Example:
        >>> import numpyro.distributions as dist
        >>> from sbijax._quantiles import tabulate
        >>> table = tabulate(dist.Gamma(2.0, 3.0))
        >>> table.value.shape, tabulate(dist.Normal(0.0, 1.0)) is None
        ((129, 1), True)

    Reference:
        Gregory, Delbourgo. Piecewise rational quadratic interpolation to monotonic
        data, 1982.
    """
    names = _PARAMETERS.get(type(d), ())
    given = [getattr(d, name) for name in names]
    if not names or any(isinstance(p, jax.core.Tracer) for p in given):
        return None
    given = [np.broadcast_to(np.asarray(p, float), d.batch_shape) for p in given]
    with np.errstate(all="ignore"):
        value, slope = _knots(type(d), *(p.reshape(1, -1) for p in given))
        rise = np.diff(value, axis=0) / _WIDTH
        table = QuantileTable(value, rise, slope[:-1] / rise, slope[1:] / rise)
    info = jnp.finfo(jnp.result_type(float))
    small, large = float(info.tiny), float(info.max)
    positive = np.concatenate(table[1:])
    inside = np.all((positive > small) & (positive < large / _BOUND))
    return table if inside and np.all(np.abs(value) < large) else None


def _knots(kind: type, *parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes `[K, n]` on the real line at the knots."""
    if issubclass(kind, dist.Beta):
        a, b = parameters
        v, w = _quantile(stats.beta(a, b), 1.0), _quantile(stats.beta(b, a), -1.0)
        # Both ends have their digits, for each is asked for what is near to 0 there.
        log_pdf = np.where(_KNOTS[:, None] < 0.0, *_log_pdfs(a, b, v, w))
        return np.log(v) - np.log(w), _slope(log_pdf + np.log(v) + np.log(w))
    if kind is dist.StudentT:
        frozen = stats.t(*parameters)
        v = _quantile(frozen, 1.0)
        return v, _slope(frozen.logpdf(v))
    concentration, rate = parameters
    inverted = kind is dist.InverseGamma
    frozen = (
        stats.invgamma(concentration, scale=rate)
        if inverted
        else stats.gamma(concentration, scale=1.0 / rate)
    )
    v = _quantile(frozen, 1.0)
    return np.log(v), _slope(frozen.logpdf(v) + np.log(v))


def _log_pdfs(
    a: np.ndarray, b: np.ndarray, v: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return stats.beta(a, b).logpdf(v), stats.beta(b, a).logpdf(w)


def _quantile(frozen: stats.rv_continuous, sign: float) -> np.ndarray:
    """Quantiles of `sign * z` at the knots z, by the tail that is the smaller one."""
    z = sign * _KNOTS[:, None]
    return np.where(z < 0.0, frozen.ppf(ndtr(z)), frozen.isf(ndtr(-z)))


def _slope(log_density: np.ndarray) -> np.ndarray:
    """Slopes at the knots, from the log-density of the image on the real line."""
    return np.exp(stats.norm.logpdf(_KNOTS)[:, None] - log_density)
