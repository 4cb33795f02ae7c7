"""Densities of draws in one and two dimensions, for contours and curves.

Draws are counted on a grid and smoothed by a Gaussian kernel in the basis of
cosines, cos(k pi u), in which smoothing multiplies coefficient k by
exp(-(k pi h)^2 / 2) and nothing leaks over the edge: the edge reflects.  A
density that is cut off at the bound of a prior stays level up to it.  The
bandwidth h is the largest fraction of the rule of thumb, which alone would blur
crescents and separate modes, that is nearly as good as the best by the
least-squares cross-validation score

    sum_k w_k^2 a_k^2 - 2 / (1 - s) sum_k w_k (a_k^2 - s),

with a_k the coefficients of the draws, w_k the kernel's, and s the share of
pairs of draws that are the same: 1 / n, or more where draws repeat.  The score is about
minus the integral of the squared density plus the squared error, so "nearly" is
a share of it.

Reference:
    Bowman, "An alternative method of cross-validation for the smoothing of
    density estimates", 1984.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["GridDensity", "density_1d", "density_2d", "highest_density_levels"]

_NUM_CELLS = 128
_TOLERANCE = 0.005

_Floats = npt.NDArray[np.float64]


class GridDensity(NamedTuple):
    """A density on cell centres `axes[d] [G]`, `values` is `[G]` or `[G, G]`.

    `ends [D, 2]` are the ends of the grid.
    """

    axes: tuple[_Floats, ...]
    values: _Floats
    ends: _Floats


def density_1d(draws: _Floats) -> GridDensity:
    """Estimate the density of draws `[S]`."""
    return _estimate(draws[:, None], num_cells=4 * _NUM_CELLS)


def density_2d(draws: _Floats) -> GridDensity:
    """Estimate the density of draws `[S, 2]`."""
    return _estimate(draws, num_cells=_NUM_CELLS)


def highest_density_levels(
    density: GridDensity, masses: tuple[float, ...]
) -> list[float]:
    """Heights above which the density holds each mass, in ascending order."""
    heights = np.sort(density.values.ravel())[::-1]
    held = np.cumsum(heights) / heights.sum()
    cut = [heights[np.searchsorted(held, mass)] for mass in sorted(masses)[::-1]]
    return [float(height) for height in cut]


def _estimate(draws: _Floats, num_cells: int) -> GridDensity:
    from scipy import fft

    num_draws, num_dims = draws.shape
    ends = np.stack([_ends(column) for column in draws.T])
    edges = [np.linspace(low, high, num_cells + 1) for low, high in ends]
    counts, _ = np.histogramdd(draws, bins=edges)
    shares = counts / max(1.0, counts.sum())
    coefficients = fft.dctn(shares, norm="forward", type=2) * num_cells**num_dims
    frequencies = np.linspace(0.0, np.pi * (num_cells - 1), num_cells)
    thumb = _rule_of_thumb(draws, ends)
    fractions = [1.0, 0.8, 0.64, 0.5, 0.4, 0.32, 0.25, 0.2, 0.14, 0.1, 0.07, 0.05]
    decays = [_kernel(fraction, thumb, frequencies) for fraction in fractions]
    repeats = np.unique(draws, axis=0, return_counts=True)[1] / num_draws
    same = float(np.sum(repeats**2))
    scores = np.array([_score(decay, coefficients, same) for decay in decays])
    good = scores <= scores.min() + _TOLERANCE * abs(scores.min())
    smooth = coefficients * decays[int(np.argmax(good))]
    values = fft.idctn(smooth, norm="forward", type=2) / num_cells**num_dims
    area = np.prod((ends[:, 1] - ends[:, 0]) / num_cells)
    centres = tuple((edge[1:] + edge[:-1]) / 2 for edge in edges)
    return GridDensity(centres, np.clip(values, 0.0, None) / area, ends)


def _ends(column: _Floats) -> _Floats:
    """Ends of the grid, just outside the draws unless single ones lie far out.

    The margin is five mean gaps between the outermost draws: next to nothing
    where a bound cuts the density off, room to fall to zero where it has a
    tail.
    """
    ordered = np.sort(column)
    low, high = ordered[0], ordered[-1]
    if high <= low:
        pad = max(abs(low), 1.0) * 1e-3
        return np.array([low - pad, high + pad])
    num_outer = min(max(5, int(np.sqrt(len(ordered)))), len(ordered) - 1)
    low -= 5.0 * (ordered[num_outer] - low) / num_outer
    high += 5.0 * (high - ordered[-1 - num_outer]) / num_outer
    inner_low, inner_high = np.quantile(ordered, [0.001, 0.999])
    reach = 0.2 * (inner_high - inner_low)
    if reach > 0:
        low, high = max(low, inner_low - reach), min(high, inner_high + reach)
    return np.array([low, high])


def _rule_of_thumb(draws: _Floats, ends: _Floats) -> _Floats:
    """Silverman's bandwidth per axis, in units of the grid's length."""
    num_draws, num_dims = draws.shape
    quartiles = np.quantile(draws, [0.25, 0.75], axis=0)
    spread = np.minimum(draws.std(axis=0), (quartiles[1] - quartiles[0]) / 1.34)
    spread = np.where(spread > 0, spread, draws.std(axis=0))
    factor = (4.0 / (num_dims + 2.0) / num_draws) ** (1.0 / (num_dims + 4.0))
    return np.maximum(factor * spread / (ends[:, 1] - ends[:, 0]), 2e-3)


def _kernel(fraction: float, thumb: _Floats, frequencies: _Floats) -> _Floats:
    factors = [np.exp(-0.5 * (frequencies * fraction * h) ** 2) for h in thumb]
    return factors[0] if len(factors) == 1 else np.multiply.outer(*factors)


def _score(decay: _Floats, coefficients: _Floats, same: float) -> float:
    """Least-squares cross-validation score of one bandwidth."""
    # A cosine of order k > 0 has mean square 1/2 on the grid, a constant has 1.
    weights = np.ones_like(decay)
    for axis in range(decay.ndim):
        shape = [-1 if a == axis else 1 for a in range(decay.ndim)]
        scale = np.where(np.arange(decay.shape[axis]) > 0, 2.0, 1.0)
        weights = weights * scale.reshape(shape)
    squares = weights * coefficients**2
    roughness = np.sum(decay**2 * squares)
    held_out = np.sum(decay * (squares - same)) / max(1.0 - same, 1e-12)
    return float(roughness - 2.0 * held_out)
