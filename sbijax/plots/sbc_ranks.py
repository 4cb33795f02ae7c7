"""Ranks of simulation-based calibration against uniformity."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sbijax.plots._style import ACCENT, GRID, INK, MUTED, PRIMARY, grid_figure

__all__ = ["sbc_ranks"]


class _Band(Protocol):
    @property
    def points(self) -> npt.NDArray[np.float64]: ...
    @property
    def lower(self) -> npt.NDArray[np.float64]: ...
    @property
    def upper(self) -> npt.NDArray[np.float64]: ...
    @property
    def level(self) -> float: ...


class _Ranks(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def ranks(self) -> npt.NDArray[np.int64]: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def p_values(self) -> npt.NDArray[np.float64]: ...
    @property
    def band(self) -> _Band: ...


def sbc_ranks(result: _Ranks) -> Figure:
    """Draw the empirical distribution of ranks minus the uniform one.

    One panel per quantity.  The shaded band holds the whole curve of a
    calibrated posterior with probability 95 %; a curve that leaves it is drawn
    in another colour.  A hump above zero means draws that are too high, a dip
    draws that are too low; up then down is too narrow, down then up too wide.

    Args:
        result: result of `sbijax.diagnostics.sbc`.

    Returns:
        The figure, one panel per ranked quantity.

    Example:
        >>> import numpy as np
        >>> from sbijax.diagnostics import sbc_result
        >>> figure = sbc_ranks(sbc_result(np.arange(100)[:, None], ("alpha",), 99))
        >>> figure.axes[0].get_title(loc="left")
        'alpha'

    Reference:
        Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample
        comparison", 2022.
    """
    band = result.band
    points = np.concatenate([[0.0], band.points, [1.0]])
    lower = np.concatenate([[0.0], band.lower, [1.0]]) - points
    upper = np.concatenate([[0.0], band.upper, [1.0]]) - points
    cuts = np.rint(points * (result.num_samples + 1))
    figure, axes = grid_figure(len(result.names))
    reach = max(np.max(upper), -np.min(lower))
    for column, (ax, name) in enumerate(zip(axes, result.names, strict=True)):
        below = np.searchsorted(np.sort(result.ranks[:, column]), cuts)
        difference = below / len(result.ranks) - points
        outside = np.any((difference < lower - 1e-12) | (difference > upper + 1e-12))
        ax.fill_between(points, lower, upper, color=GRID, linewidth=0)
        ax.axhline(0.0, color=MUTED, linewidth=0.6)
        ax.plot(points, difference, color=ACCENT if outside else PRIMARY, linewidth=1.4)
        ax.set_title(name, loc="left", fontsize=9, color=INK)
        p = result.p_values[column]
        text = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
        ax.set_title(text, loc="right", fontsize=8, color=MUTED)
        reach = max(reach, np.max(np.abs(difference)))
    axes[0].set_xlim(0.0, 1.0)
    axes[0].set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    axes[0].set_ylim(-1.1 * reach, 1.1 * reach)
    label = f"normalised rank (shaded: {100 * band.level:g} % if calibrated)"
    figure.supxlabel(label, fontsize=9, color=INK)
    figure.supylabel("ECDF $-$ uniform", fontsize=9, color=INK)
    return figure
