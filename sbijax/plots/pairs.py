"""Pair plot of posterior draws: every marginal and every pair of parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sbijax.base import PyTree
from sbijax.checks import describe
from sbijax.plots._arrays import draws_matrix, point_vector, scalar_names
from sbijax.plots._density import (
    GridDensity,
    density_1d,
    density_2d,
    highest_density_levels,
)
from sbijax.plots._style import (
    ACCENT,
    INK,
    LEGEND,
    PRIMARY,
    hide_axes,
    new_figure,
    round_ticks,
    tidy,
    tint,
)

__all__ = ["pairs"]

_MASSES = (0.5, 0.8, 0.95)
_TINTS = (0.22, 0.5, 0.85)
_MAX_DIMS = 15

_Floats = npt.NDArray[np.float64]


def pairs(
    draws: PyTree,
    *,
    truth: PyTree | None = None,
    reference: PyTree | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw every marginal and every pair of parameters of posterior draws.

    Densities are smoothed with reflection at the ends of the draws, so that a
    posterior cut off at the bound of its prior is drawn level up to it.

    Args:
        draws: `[S, D]` or a theta pytree with leaves `[S, ...]`; filled regions
            hold 50, 80 and 95 % of them.
        truth: one theta, `[D]` or a pytree, marked in every panel.
        reference: draws to compare with, of the same parameters; drawn as
            lines around regions of the same masses.
        labels: `D` texts in place of the parameters' names.

    Returns:
        The figure, with the marginals on the diagonal.

    Raises:
        ValueError: parameters that differ between the arguments, non-finite
            draws, fewer than 2 draws, or more than 15 parameters.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws = {"alpha": rng.normal(size=500), "beta": rng.uniform(size=500)}
        >>> figure = pairs(draws, truth={"alpha": 0.0, "beta": 0.5})
        >>> [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
        ['alpha', 'beta']
    """
    names = scalar_names(draws, 1, bare="theta")
    sample = _check_draws(draws, "draws", draws)
    other = None if reference is None else _check_draws(reference, "reference", draws)
    point = None if truth is None else _check_truth(truth, draws, len(names))
    labels = names if labels is None else tuple(labels)
    if len(labels) != len(names):
        raise ValueError(
            f"labels must name each of the {len(names)} parameters "
            f"{', '.join(names)}; got {len(labels)}."
        )
    num_dims = len(names)
    size = num_dims * min(1.9, max(2.0 - 0.085 * num_dims, 1.0)) + 0.6
    figure = new_figure(max(size, 3.8), max(size, 2.8))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(num_dims, num_dims, squeeze=False)
    limits = _limits(sample, other, point)
    for row in range(num_dims):
        for column in range(num_dims):
            ax = axes[row, column]
            if column > row:
                ax.remove()
                continue
            if row == column:
                _draw_marginal(ax, row, sample, other, point)
            else:
                _draw_pair(ax, [column, row], sample, other, point)
                ax.set_ylim(*limits[row])
            ax.set_xlim(*limits[column])
            _label(ax, row, column, labels)
    figure.align_labels()
    _add_legend(figure, num_dims, other is not None, point is not None)
    return figure


def _check_draws(value: PyTree, name: str, draws: PyTree) -> _Floats:
    matrix = draws_matrix(value, name)
    if len(matrix) < 2:
        raise ValueError(f"{name} must hold at least 2 draws, got {len(matrix)}.")
    if matrix.shape[1] > _MAX_DIMS:
        raise ValueError(
            f"{matrix.shape[1]} parameters are too many for one pair plot "
            f"(at most {_MAX_DIMS}): choose some of them."
        )
    given, expected = (scalar_names(v, 1, bare="theta") for v in (value, draws))
    is_array = len(jax.tree.leaves(value)) == 1 and not isinstance(value, dict)
    if len(given) != len(expected) or not (is_array or given == expected):
        raise ValueError(
            f"{name} must hold the parameters of draws, {describe(draws)}; got "
            f"{describe(value)}."
        )
    return matrix


def _check_truth(truth: PyTree, draws: PyTree, num_dims: int) -> _Floats:
    point = point_vector(truth, "truth")
    names = scalar_names(truth, 0, bare="theta")
    mismatch = isinstance(truth, dict) and names != scalar_names(draws, 1, bare="theta")
    if len(point) != num_dims or mismatch:
        raise ValueError(
            f"truth must be one theta with the parameters of draws, "
            f"{describe(draws)}; got {describe(truth)}."
        )
    return point


def _limits(
    sample: _Floats, other: _Floats | None, point: _Floats | None
) -> list[tuple[float, float]]:
    limits = []
    for index in range(sample.shape[1]):
        ends = [density_1d(sample[:, index]).ends]
        if other is not None:
            ends.append(density_1d(other[:, index]).ends)
        if point is not None:
            ends.append(np.full((1, 2), point[index]))
        low, high = float(np.min(ends)), float(np.max(ends))
        pad = 0.04 * (high - low)
        limits.append((low - pad, high + pad))
    return limits


def _draw_marginal(
    ax: Axes, index: int, sample: _Floats, other: _Floats | None, point: _Floats | None
) -> None:
    x, height = _closed_curve(density_1d(sample[:, index]))
    ax.fill_between(x, height, color=tint(PRIMARY, 0.3), linewidth=0)
    ax.plot(x, height, color=PRIMARY, linewidth=1.2)
    top = height.max()
    if other is not None:
        x, height = _closed_curve(density_1d(other[:, index]))
        ax.plot(x, height, color=ACCENT, linewidth=1.2)
        top = max(top, height.max())
    if point is not None:
        ax.axvline(point[index], color=INK, linewidth=0.9)
    ax.set_ylim(0.0, 1.08 * top)


def _closed_curve(density: GridDensity) -> tuple[_Floats, _Floats]:
    """Curve that falls to zero at both ends."""
    (centres,), (ends,) = density.axes, density.ends
    x = np.concatenate([[ends[0]] * 2, centres, [ends[1]] * 2])
    values = density.values
    y = np.concatenate([[0.0, values[0]], values, [values[-1], 0.0]])
    return x, y


def _draw_pair(
    ax: Axes,
    columns: list[int],
    sample: _Floats,
    other: _Floats | None,
    point: _Floats | None,
) -> None:
    density = density_2d(sample[:, columns])
    levels = _strictly_rising(highest_density_levels(density, _MASSES))
    colors = [tint(PRIMARY, share) for share in _TINTS]
    ax.contourf(*_closed_surface(density), [*levels, np.inf], colors=colors)
    if other is not None:
        density = density_2d(other[:, columns])
        levels = _strictly_rising(highest_density_levels(density, _MASSES))
        ax.contour(*_closed_surface(density), levels, colors=ACCENT, linewidths=0.9)
    if point is not None:
        x, y = point[columns]
        ax.axvline(x, color=INK, linewidth=0.5, alpha=0.6)
        ax.axhline(y, color=INK, linewidth=0.5, alpha=0.6)
        ax.plot(x, y, "o", color=INK, markersize=4.5, markeredgecolor="white")


def _closed_surface(density: GridDensity) -> tuple[_Floats, _Floats, _Floats]:
    """Grid that reaches the ends and is zero just outside, so contours close."""
    x, y = (
        np.concatenate([[low, low], centres, [high, high]])
        for centres, (low, high) in zip(density.axes, density.ends, strict=True)
    )
    values = np.pad(np.pad(density.values, 1, mode="edge"), 1)
    return x, y, values.T


def _strictly_rising(levels: list[float]) -> list[float]:
    """Contour levels must differ, also where many cells are equally high."""
    rising = [levels[0]]
    for level in levels[1:]:
        rising.append(max(level, rising[-1] * (1 + 1e-6)))
    return rising


def _label(ax: Axes, row: int, column: int, labels: tuple[str, ...]) -> None:
    tidy(ax)
    last = len(labels) - 1
    num_ticks = 4 if last < 6 else 3
    ax.xaxis.set_major_locator(round_ticks(num_ticks, prune="both"))
    ax.yaxis.set_major_locator(round_ticks(num_ticks, prune="both"))
    if row == column:
        hide_axes(ax, "left")
    ax.tick_params(labelbottom=row == last, labelleft=column == 0)
    if row == last:
        ax.set_xlabel(labels[column])
    if column == 0 and row > 0:
        ax.set_ylabel(labels[row])


def _add_legend(
    figure: Figure, num_dims: int, has_reference: bool, has_truth: bool
) -> None:
    many = num_dims > 1
    tints = _TINTS if many else (0.3,)
    masses = ", ".join(f"{100 * mass:g}" for mass in _MASSES[::-1])
    named: dict[str, Any] = {
        f"draws: {masses} %" if many else "draws": tuple(
            Patch(facecolor=tint(PRIMARY, share)) for share in tints
        )
    }
    if has_reference:
        named["reference"] = Line2D([], [], color=ACCENT, linewidth=1.2)
    if has_truth:
        marker = "o" if many else ""
        named["truth"] = Line2D(
            [], [], color=INK, marker=marker, markersize=4.5, linewidth=0.9
        )
    figure.legend(
        list(named.values()),
        list(named),
        loc="upper right" if many else "outside upper center",
        ncols=1 if many else len(named),
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
        **LEGEND,
    )
