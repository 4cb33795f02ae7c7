"""Elementwise monotone maps, the scalar building block of every flow.

Each maps a vector `y` to `z` under unconstrained parameters of shape
`[len(y), num_params]`; zeros are the identity.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array
from sbijax.checks import check_count
from sbijax.networks.linear import exact_matmul

__all__ = ["Elementwise", "affine", "spline"]

_MIN_BIN = 1e-3
_MAX_BINS = 500  # a bin keeps at least half of its share for the network to move
_MIN_SLOPE = 1e-3


class Elementwise(NamedTuple):
    """A monotone map of scalars.

    `forward(y, params) -> (z, log_slope)` and `inverse(z, params) -> y`, with
    `y`, `z`, `log_slope` of shape `[n]` and `params` `[n, num_params]`.
    """

    num_params: int
    forward: Callable[[Array, Array], tuple[Array, Array]]
    inverse: Callable[[Array, Array], Array]


def affine(*, max_log_scale: float = 5.0) -> Elementwise:
    """z = (y - m) exp(-s), with s softly bounded to keep the map invertible.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.densities.elementwise import affine
        >>> z, log_slope = affine().forward(jnp.ones(2), jnp.zeros((2, 2)))
        >>> z.tolist(), log_slope.shape
        ([1.0, 1.0], (2,))
    """

    def split(params: Array) -> tuple[Array, Array]:
        return params[:, 0], max_log_scale * jnp.tanh(params[:, 1] / max_log_scale)

    def forward(y: Array, params: Array) -> tuple[Array, Array]:
        shift, log_scale = split(params)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    def inverse(z: Array, params: Array) -> Array:
        shift, log_scale = split(params)
        return z * jnp.exp(log_scale) + shift

    return Elementwise(2, forward, inverse)


def spline(*, num_bins: int = 8, bound: float = 5.0, gain: float = 1.0) -> Elementwise:
    """Monotone rational-quadratic spline on [-bound, bound], identity outside.

    With bin `k` of width w, height h, slope s = h / w and knot slopes d_0, d_1,
    at xi = (y - y_k) / w,

        z = z_k + h (s xi^2 + d_0 xi (1 - xi)) / (s + (d_0 + d_1 - 2 s) xi (1 - xi)).

    Args:
        num_bins: number of bins, at least 2.
        bound: half-width of the interval; data are expected to be of order one.
        gain: what the parameters are multiplied with; under Adam a spline with a
            gain of .1 moves ten times slower than the rest of a flow, and takes
            what that leaves.

    Raises:
        TypeError: `num_bins` is not a whole number.
        ValueError: fewer than 2 bins or too many, or a bound or a gain that is not
            positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.densities.elementwise import spline
        >>> f = spline(num_bins=4)
        >>> z, log_slope = f.forward(jnp.array([0.3]), jnp.zeros((1, f.num_params)))
        >>> round(float(z[0]), 4), abs(round(float(log_slope[0]), 4))
        (0.3, 0.0)

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Neural spline flows, 2019.
    """
    num_bins = check_count(num_bins, "num_bins", least=2)
    if num_bins > _MAX_BINS or not 0.0 < bound < math.inf:
        raise ValueError(
            f"a spline needs num_bins of at most {_MAX_BINS} and a finite bound > 0, "
            f"got {num_bins} and {bound}."
        )
    if not 0.0 < gain < math.inf:
        raise ValueError(f"the gain of a spline must be finite and > 0, got {gain}.")
    # softplus(offset) + _MIN_SLOPE = 1: parameters of zero give slope one.
    offset = math.log(math.expm1(1.0 - _MIN_SLOPE))

    def grid(raw: Array) -> tuple[Array, Array]:
        """Sizes and left edges of the bins, `[n, 2, num_bins]`.

        Sums are matrix products, which on CPU beat reductions and cumsum.
        """
        share = jnp.exp(raw - jax.lax.stop_gradient(jnp.max(raw, -1, keepdims=True)))
        free = 2.0 * bound * (1.0 - _MIN_BIN * num_bins)
        total = exact_matmul(share, np.ones((num_bins, 1)))
        size = 2.0 * bound * _MIN_BIN + share * (free / total)
        return size, exact_matmul(size, np.tri(num_bins, k=-1).T) - bound

    def select(v: Array, params: Array, of_heights: bool) -> tuple[Array, ...]:
        """The bin that holds `v`: its edges, sizes and slopes, each `[n]`."""
        params = gain * params
        size, edge = grid(params[:, :-left].reshape(-1, 2, num_bins))
        raw_slope = jnp.pad(params[:, -left:], ((0, 0), (1, 1)))
        v_edge = edge[:, int(of_heights), 1:]
        bin_ = jnp.sum(v[:, None] >= v_edge, axis=1, keepdims=True)

        def take(part: Array, place: Array) -> Array:
            return jnp.take_along_axis(part, place, -1, mode="promise_in_bounds")

        edges, sizes = (take(part, bin_[:, None])[..., 0] for part in (edge, size))
        raw_slopes = take(raw_slope, bin_ + np.arange(2))
        slopes = _MIN_SLOPE + jax.nn.softplus(raw_slopes + offset)
        return *edges.T, *sizes.T, *slopes.T

    left = num_bins - 1

    def forward(y: Array, params: Array) -> tuple[Array, Array]:
        inside = jnp.abs(y) < bound
        safe = jnp.where(inside, y, 0.0)
        y_k, z_k, w, h, d0, d1 = select(safe, params, of_heights=False)
        # Never below 0; a clip there would halve the gradient on every knot.
        s, xi = h / w, jnp.minimum((safe - y_k) / w, 1.0)
        rise, log_slope = rational_quadratic(xi, h, s, d0, d1)
        return jnp.where(inside, z_k + rise, y), jnp.where(inside, log_slope, 0.0)

    def inverse(z: Array, params: Array) -> Array:
        inside = jnp.abs(z) < bound
        safe = jnp.where(inside, z, 0.0)
        y_k, z_k, w, h, d0, d1 = select(safe, params, of_heights=True)
        xi = rational_quadratic_inverse(safe - z_k, h, h / w, d0, d1)
        return jnp.where(inside, y_k + w * xi, z)

    return Elementwise(3 * num_bins - 1, forward, inverse)


def rational_quadratic(
    xi: Array, h: Array | float, s: Array | float, d0: Array, d1: Array
) -> tuple[Array, Array]:
    """How far one bin of `spline` has risen at `xi` in [0, 1], and the log-slope."""
    mix = xi * (1.0 - xi)
    below = s + (d0 + d1 - 2.0 * s) * mix
    rise = h * (s * xi**2 + d0 * mix) / below
    top = d1 * xi**2 + 2.0 * s * mix + d0 * (1.0 - xi) ** 2
    return rise, 2.0 * jnp.log(s) + jnp.log(top) - 2.0 * jnp.log(below)


def rational_quadratic_inverse(
    rise: Array, h: Array | float, s: Array | float, d0: Array, d1: Array
) -> Array:
    """Where in [0, 1] one bin of `spline` has risen by `rise`."""
    curve = d0 + d1 - 2.0 * s
    a = h * (s - d0) + rise * curve
    b = h * d0 - rise * curve
    c = -s * rise
    root = jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 0.0))
    # Of the two forms of the root, the one whose sum does not cancel.
    tiny = jnp.finfo(root.dtype).tiny
    usual = 2.0 * c / jnp.minimum(-b - root, -tiny)
    steep = (root - b) / jnp.where(b < 0.0, 2.0 * a, 1.0)
    return jnp.minimum(jnp.where(b < 0.0, steep, usual), 1.0)
