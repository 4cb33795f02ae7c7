"""Quantile functions in a table, for distributions whose own are found by iteration.

The bijection of a prior turns normals into draws in every step of every sampler.  The
quantiles of a gamma, a beta or a Student's t distribution take hundreds of steps of an
iteration each time.  A table with a rational quadratic in every bin is a bijection as
well, with an inverse in closed form, and its image of a normal z is the quantile of z
to 1e-5 (1e-3 in the tails of a Cauchy distribution).
"""

import warnings
from functools import lru_cache
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

_BOUND = 8.0  # the probability beyond is 1e-15
_WIDTH = 0.125
_KNOTS = np.arange(-_BOUND, _BOUND + _WIDTH, _WIDTH)
_MAX_BEND = 1.8  # of the slope from the middle to an end of a bin
_MAX_LOG = 80.0  # beyond, positive values overflow a float32
_MAX_REAL = 1e18  # beyond, squares do
_RESOLUTION = 1e-4  # of values, in slopes: what float32 leaves of narrow distributions

# The family, and the names of the parameters by which scipy knows it.
_FAMILIES: dict[type, tuple[str, tuple[str, ...]]] = {
    dist.Gamma: ("gamma", ("concentration", "rate")),
    dist.Chi2: ("gamma", ("concentration", "rate")),
    dist.InverseGamma: ("inverse gamma", ("concentration", "rate")),
    dist.Beta: ("beta", ("concentration1", "concentration0")),
    dist.BetaProportion: ("beta", ("concentration1", "concentration0")),
    dist.StudentT: ("student", ("df", "loc", "scale")),
}


class QuantileTable(NamedTuple):
    """Increasing maps from normals to the real line, one for each different parameter.

    `value` at the K knots `[K, n]`; `rise`, the mean slopes of the bins `[K - 1, n]`;
    `left` and `right`, the slopes at the ends of each as multiples of that; `columns`,
    which of the n maps is that of which element of the batch.  The real line is that
    of numpyro's `biject_to`: logarithms of positive values, logits of shares.
    """

    value: np.ndarray
    rise: np.ndarray
    left: np.ndarray
    right: np.ndarray
    columns: np.ndarray

    def forward(self, z: Array) -> Array:
        """Values at the normals `z`, which stay put beyond 8."""
        z = jnp.clip(z, -_BOUND, _BOUND)
        bin_ = jnp.floor((z + _BOUND) / _WIDTH).astype(int)
        bin_ = jnp.clip(bin_, 0, len(self.rise) - 1)
        low, rise, left, right = self._bin(bin_)
        xi = (z - jnp.asarray(_KNOTS, float)[bin_]) / _WIDTH
        return low + _WIDTH * rise * rational_quadratic(xi, 1.0, 1.0, left, right)[0]

    def inverse(self, value: Array) -> Array:
        """Normals `z` whose image is `value`, between -8 and 8."""
        columns = np.broadcast_to(self.columns, value.shape)
        knots = jnp.asarray(self.value, float)[:, columns]
        value = jnp.clip(value, knots[0], knots[-1])
        bin_ = jnp.sum(value >= knots[1:-1], axis=0)
        low, rise, left, right = self._bin(bin_)
        share = (value - low) / (_WIDTH * rise)
        xi = rational_quadratic_inverse(share, 1.0, 1.0, left, right)
        return jnp.asarray(_KNOTS, float)[bin_] + _WIDTH * xi

    def _bin(self, bin_: Array) -> tuple[Array, ...]:
        """Lower value, rise and slopes at both ends of one bin for each element."""
        columns = np.broadcast_to(self.columns, bin_.shape)
        return tuple(jnp.asarray(part, float)[bin_, columns] for part in self[:-1])


def tabulate(d: dist.Distribution) -> QuantileTable | None:
    """The table of the univariate distributions in a batch.

    Returns:
        The table, or None where the quantiles have a closed form or no known one,
        where parameters are traced, and where the table would not be accurate.

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
    family, names = _FAMILIES.get(type(d), ("", ()))
    given = [getattr(d, name) for name in names]
    if not names or any(isinstance(p, jax.core.Tracer) for p in given):
        return None
    rows = [np.broadcast_to(np.asarray(p, float), d.batch_shape) for p in given]
    flat = np.stack([row.ravel() for row in rows])
    different, columns = np.unique(flat, axis=1, return_inverse=True)
    table = _fill(family, tuple(map(tuple, different.tolist())))
    return table and table._replace(columns=columns.reshape(d.batch_shape))


@lru_cache(maxsize=64)
def _fill(
    family: str, parameters: tuple[tuple[float, ...], ...]
) -> QuantileTable | None:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tails of betas, mended below
        value, slope = _knots(family, *np.array(parameters)[:, None])
        rise = np.diff(value, axis=0) / _WIDTH
        left, right = slope[:-1] / rise, slope[1:] / rise
        ends = np.stack([left, right])
        largest = np.maximum(np.abs(value[:-1]), np.abs(value[1:]))
        accurate = (ends > 1.0 / _MAX_BEND) & (ends < _MAX_BEND)
        accurate &= 1e-7 * largest < _RESOLUTION * rise
        if family != "beta":
            accurate &= value[1:] < (_MAX_REAL if family == "student" else _MAX_LOG)
    if not np.all(accurate):
        return None
    return QuantileTable(value, rise, left, right, np.arange(value.shape[1]))


def _knots(family: str, *parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes `[K, n]` on the real line at the knots."""
    if family == "beta":
        # Both ends have their digits, for each is asked for what is near to 0 there.
        (low, slope), (high, mirrored) = (
            _half(*p) for p in (parameters, parameters[::-1])
        )
        value = np.concatenate([low, -high[-2::-1]])
        return value, np.concatenate([slope, mirrored[-2::-1]])
    if family == "student":
        frozen = stats.t(*parameters)
        v = _quantile(frozen)
        return v, _slope(frozen.logpdf(v))
    shape, rate = parameters
    if family == "gamma":
        frozen = stats.gamma(shape, scale=1.0 / rate)
    else:
        frozen = stats.invgamma(shape, scale=rate)
    v = _quantile(frozen)
    return np.log(v), _slope(frozen.logpdf(v) + np.log(v))


def _half(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a beta distribution and their slopes at the knots up to 0."""
    z = _KNOTS[: len(_KNOTS) // 2 + 1, None]
    frozen, q = stats.beta(a, b), ndtr(z)
    v = frozen.ppf(q)
    for _ in range(3):  # by Newton: the tail of Beta(1/2, 2) is off by a factor
        share = frozen.cdf(v)
        slope = np.exp(np.log(v) + frozen.logpdf(v)) / share
        v = v * np.exp(np.log(q / share) / slope)
    log_step = np.log(v) + np.log1p(-v)
    slope = np.exp(stats.norm.logpdf(z) - frozen.logpdf(v) - log_step)
    return np.log(v) - np.log1p(-v), slope


def _quantile(frozen: stats.rv_continuous) -> np.ndarray:
    """Quantiles at the knots, by the tail that is the smaller one."""
    low = _KNOTS < 0.0
    below, above = _KNOTS[low, None], _KNOTS[~low, None]
    return np.concatenate([frozen.ppf(ndtr(below)), frozen.isf(ndtr(-above))])


def _slope(log_density: np.ndarray) -> np.ndarray:
    """Slopes at the knots, from the log-density of the image on the real line."""
    return np.exp(stats.norm.logpdf(_KNOTS)[:, None] - log_density)
