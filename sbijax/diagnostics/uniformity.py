"""Exact test that ranks are uniform, and the band that belongs to it.

Under the null the ranks r_1, ..., r_N are independent and uniform on
{0, ..., S}, so the count R(z) of ranks below the share z is Binomial(N, z).
The statistic is the smallest two-sided binomial p-value over a grid of z,

    gamma = min_z 2 min(P(Bin(N, z) <= R(z)), P(Bin(N, z) >= R(z))),

and its distribution is computed, not simulated: R is a Poisson process pinned
to N at z = 1, so the probability of the paths that stay inside bounds is a
chain of short convolutions.  The test therefore has its size at every N and S,
and the band of the same gamma shows where a rejected set of ranks leaves it.

Reference:
    Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample
    comparison", 2022 (the statistic; there its distribution is simulated or
    computed by sums over all paths).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["UniformityBand", "rank_counts", "uniformity_band", "uniformity_p_value"]

_NUM_POINTS = 100
_FLOOR = 1e-8

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class UniformityBand(NamedTuple):
    """Simultaneous band for the empirical distribution of uniform ranks.

    `points [K]` are the shares z; `lower [K]` and `upper [K]` bound the share
    of ranks below z, jointly for all z with probability `level`.
    """

    points: _Floats
    lower: _Floats
    upper: _Floats
    level: float


def uniformity_p_value(ranks: npt.ArrayLike, num_samples: int) -> float:
    """P-value of the hypothesis that ranks are uniform on {0, ..., S}.

    Exact for any number of ranks down to 1e-8; below that it is the Bonferroni
    bound over the grid, which is no smaller than the exact value.

    Args:
        ranks: `[N]` integers from 0 to `num_samples`.
        num_samples: number of posterior draws S that each rank is among.

    Returns:
        Probability, under uniformity, of a deviation as large as this one.

    Raises:
        ValueError: no ranks, or ranks outside 0 to `num_samples`.

    Example:
        >>> import numpy as np
        >>> uniformity_p_value(np.arange(100), num_samples=99)
        1.0
        >>> uniformity_p_value(np.zeros(100), num_samples=99) < 1e-8
        True

    Reference:
        Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample
        comparison", 2022.
    """
    from scipy import special

    ranks = _check_ranks(ranks, num_samples)
    num_ranks = len(ranks)
    points = _grid(num_samples)
    counts = rank_counts(ranks, num_samples)
    below = special.bdtr(counts, num_ranks, points)
    above = special.bdtr(num_ranks - counts, num_ranks, 1.0 - points)
    gamma = min(1.0, 2.0 * float(np.min(np.minimum(below, above))))
    if gamma >= 1.0:
        return 1.0
    lower, upper = _count_bounds(gamma, num_ranks, points)
    exact = 1.0 - _probability_inside(lower, upper, num_ranks, points)
    if exact > _FLOOR:
        return min(1.0, exact)
    return min(_FLOOR, len(points) * gamma)


def uniformity_band(
    num_ranks: int, num_samples: int, *, level: float = 0.95
) -> UniformityBand:
    """Band that the empirical distribution of uniform ranks stays in.

    Args:
        num_ranks: number of ranks N.
        num_samples: number of posterior draws S; ranks run from 0 to S.
        level: joint probability that the whole curve stays inside.

    Returns:
        The narrowest band of equal pointwise probability that reaches `level`;
        it holds counts of whole ranks, so its true level is `level` or a
        little more.

    Raises:
        ValueError: counts below 1 or a level outside (0, 1).

    Example:
        >>> band = uniformity_band(1000, 1000)
        >>> bool((band.lower < band.points).all())
        True
    """
    if num_ranks < 1 or num_samples < 1:
        raise ValueError(
            "num_ranks and num_samples must be at least 1, got "
            f"{num_ranks} and {num_samples}."
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    points = _grid(num_samples)
    outer, inner = np.log((1.0 - level) / (2.0 * len(points))), 0.0
    for _ in range(40):
        middle = 0.5 * (outer + inner)
        bounds = _count_bounds(np.exp(middle), num_ranks, points)
        if _probability_inside(*bounds, num_ranks, points) >= level:
            outer = middle
        else:
            inner = middle
    lower, upper = _count_bounds(np.exp(outer), num_ranks, points)
    return UniformityBand(points, lower / num_ranks, upper / num_ranks, level)


def rank_counts(ranks: npt.ArrayLike, num_samples: int) -> _Ints:
    """Count the ranks below each point of the grid that the test looks at."""
    cuts = _cuts(num_samples)
    return np.searchsorted(np.sort(np.asarray(ranks)), cuts, side="left")


def _check_ranks(ranks: npt.ArrayLike, num_samples: int) -> _Ints:
    array = np.asarray(ranks)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"ranks must be [N] with N >= 1, got shape {array.shape}.")
    if array.min() < 0 or array.max() > num_samples:
        raise ValueError(
            f"ranks among {num_samples} draws run from 0 to {num_samples}, got "
            f"{array.min()} to {array.max()}."
        )
    return array.astype(np.int64)


def _cuts(num_samples: int) -> _Ints:
    num_cells = min(num_samples + 1, _NUM_POINTS)
    edges = np.rint(np.linspace(0, num_samples + 1, num_cells + 1))
    return edges.astype(np.int64)[1:-1]


def _grid(num_samples: int) -> _Floats:
    return _cuts(num_samples) / (num_samples + 1.0)


def _count_bounds(gamma: float, num_ranks: int, points: _Floats) -> tuple[_Ints, _Ints]:
    """Smallest and largest count whose pointwise p-value exceeds gamma."""
    lower = _smallest_count(gamma, num_ranks, points)
    upper = num_ranks - _smallest_count(gamma, num_ranks, 1.0 - points)
    return lower, upper


def _smallest_count(gamma: float, num_ranks: int, points: _Floats) -> _Ints:
    """Smallest j with 2 P(Bin(N, z) <= j) > gamma, for every z at once."""
    from scipy import special

    below = np.full(len(points), -1)
    reached = np.full(len(points), num_ranks)
    while np.any(reached - below > 1):
        middle = np.where(reached - below > 1, (below + reached) // 2, reached)
        hit = 2.0 * special.bdtr(middle, num_ranks, points) > gamma
        reached = np.where(hit, middle, reached)
        below = np.where(hit, below, middle)
    return reached


def _probability_inside(
    lower: _Ints, upper: _Ints, num_ranks: int, points: _Floats
) -> float:
    """Probability that lower <= R(z) <= upper at every point z."""
    from scipy import special

    log_factorial = special.gammaln(np.arange(num_ranks + 1) + 1.0)

    def poisson(rate: float, largest: int) -> _Floats:
        counts = np.arange(largest + 1)
        return np.exp(counts * np.log(rate) - rate - log_factorial[: largest + 1])

    widths = np.diff(np.concatenate(([0.0], points, [1.0])))
    mass, start = np.ones(1), 0
    for width, low, high in zip(
        widths, [*lower, num_ranks], [*upper, num_ranks], strict=True
    ):
        if high < low:
            return 0.0
        reachable = np.convolve(mass, poisson(num_ranks * width, int(high - start)))
        mass = reachable[low - start : high - start + 1]
        start = low
    return float(mass[0] / poisson(float(num_ranks), num_ranks)[-1])
