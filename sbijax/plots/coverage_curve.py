"""Empirical against nominal coverage."""

from itertools import cycle
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sbijax.plots._style import CYCLE, GRID, INK, LEGEND, MUTED, new_figure, tidy

__all__ = ["coverage_curve"]

_MAX_COLOURED = 2 * len(CYCLE)
_JOINT = "highest density"


class _Coverage(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def nominal(self) -> npt.NDArray[np.float64]: ...
    @property
    def empirical(self) -> npt.NDArray[np.float64]: ...
    @property
    def lower(self) -> npt.NDArray[np.float64]: ...
    @property
    def upper(self) -> npt.NDArray[np.float64]: ...


def coverage_curve(result: _Coverage) -> Figure:
    """Draw how often credible regions hold the truth against their level.

    The shaded band is where a calibrated posterior's coverage falls with
    probability 95 %, level by level.  Curves below the diagonal belong to an
    overconfident posterior, curves above it to a conservative one.

    Args:
        result: result of `sbijax.diagnostics.coverage`.

    Returns:
        The figure: one line per parameter, a heavier one for the joint
        highest-density region.

    Example:
        >>> import numpy as np
        >>> from sbijax.diagnostics import coverage, sbc_result
        >>> ranks = sbc_result(np.arange(100)[:, None], ("alpha",), 99)
        >>> figure = coverage_curve(coverage(ranks))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['alpha', 'calibrated, 95 %']
    """
    figure = new_figure(5.2, 3.8)
    ax = figure.subplots()
    tidy(ax)
    nominal = np.concatenate([[0.0], result.nominal, [1.0]])
    order = np.argsort(nominal)
    lower, upper = (
        np.concatenate([[0.0], side, [1.0]])[order]
        for side in (result.lower, result.upper)
    )
    band = ax.fill_between(nominal[order], lower, upper, color=GRID, linewidth=0)
    band.set_label("calibrated, 95 %")
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.6)
    marginal = [name for name in result.names if name != _JOINT]
    styles = cycle([(color, line) for line in ("-", "--") for color in CYCLE])
    for name, column in zip(result.names, result.empirical.T, strict=True):
        curve = np.concatenate([[0.0], column, [1.0]])[order]
        if name == _JOINT:
            ax.plot(nominal[order], curve, color=INK, linewidth=2.0, label=name)
        elif len(marginal) > _MAX_COLOURED:
            label = f"{len(marginal)} parameters" if name == marginal[0] else None
            ax.plot(nominal[order], curve, color=CYCLE[0], lw=0.8, label=label)
        else:
            color, line = next(styles)
            ax.plot(nominal[order], curve, line, color=color, lw=1.2, label=name)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="nominal level", ylabel="empirical coverage"
    )
    ax.set_aspect("equal")
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    handles, texts = ax.get_legend_handles_labels()
    handles, texts = handles[1:] + handles[:1], texts[1:] + texts[:1]
    ax.legend(handles, texts, loc="center left", bbox_to_anchor=(1.02, 0.5), **LEGEND)
    return figure
