"""Predictive bands against data."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sbijax.base import PyTree, SbijaxWarning
from sbijax.checks import describe
from sbijax.plots._style import (
    INK,
    LEGEND,
    PRIMARY,
    new_figure,
    round_ticks,
    tidy,
    tint,
)

__all__ = ["predictive"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_Floats = npt.NDArray[np.float64]


def predictive(
    x_draws: PyTree,
    x_observed: PyTree,
    *,
    time: npt.ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    time_label: str = "time",
    value_label: str = "x",
    log_scale: bool = False,
) -> Figure:
    """Draw predictive medians, 50 % and 90 % intervals with the data on top.

    A vector `[K]` without `time` is drawn as one interval per entry.  A series
    `[T]` or `[T, K]` is drawn as bands over time, one panel for each of its K
    components.

    Args:
        x_draws: simulated data sets `[S, ...]`, one array; data sets with a
            non-finite entry are left out with a warning.
        x_observed: the data `[K]`, `[T]` or `[T, K]`; NaN entries are missing.
        time: `[T]` times of the series; 0, 1, ... for `[T, K]` by default.
        labels: names of the K entries or components.
        time_label: text and unit below the time axis.
        value_label: text and unit beside the value axis.
        log_scale: draw values on a logarithmic axis.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not match, no finite draw, or values on a
            logarithmic axis that are not positive.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x_draws = rng.normal(size=(200, 21, 2))
        >>> figure = predictive(x_draws, np.zeros((21, 2)), labels=["hare", "lynx"])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['hare', 'lynx']
    """
    observed = np.atleast_1d(_one_array(x_observed, "x_observed"))
    draws = _one_array(x_draws, "x_draws")
    draws = _check_shapes(draws, observed, np.ndim(x_observed) == 0)
    if log_scale and np.any(observed <= 0):
        raise ValueError(
            f"{int(np.sum(observed <= 0))} observed value(s) are not positive and "
            "cannot be drawn on a logarithmic axis."
        )
    quantiles = np.quantile(_keep_finite(draws), _QUANTILES, axis=0)
    if observed.ndim == 1 and time is None:
        figure = _draw_entries(quantiles, observed, labels, value_label, log_scale)
    else:
        times = _check_time(time, len(observed))
        figure = _draw_series(
            quantiles.reshape(len(_QUANTILES), len(times), -1),
            observed.reshape(len(times), -1),
            times,
            labels,
            value_label,
            log_scale,
        )
        figure.axes[-1].set_xlabel(time_label)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside upper right", ncols=len(handles), **LEGEND
    )
    return figure


def _draw_entries(
    quantiles: _Floats,
    observed: _Floats,
    labels: Sequence[str] | None,
    value_label: str,
    log_scale: bool,
) -> Figure:
    num_entries = len(observed)
    names = _check_labels(labels, num_entries, [str(i) for i in range(num_entries)])
    figure = new_figure(min(max(3.2, 0.45 * num_entries + 1.2), 12.0), 3.2)
    ax = figure.subplots()
    tidy(ax)
    at = np.arange(float(num_entries))
    low, lower, median, upper, high = quantiles
    width = min(9.0, 220.0 / num_entries)
    for start, end, share, label in (
        (low, high, 0.25, "90 %"),
        (lower, upper, 0.6, "50 %"),
    ):
        ax.vlines(at, start, end, color=tint(PRIMARY, share), lw=width, label=label)
    ax.plot(at, median, "_", color=PRIMARY, markersize=width, mew=1.6, label="median")
    _draw_observed(ax, at, observed)
    ax.set_xlim(-0.7, num_entries - 0.3)
    if labels is not None or num_entries <= 30:
        long = max(map(len, names)) > 3 and num_entries > 6
        ax.set_xticks(at, names, rotation=90 if long else 0)
    if labels is None:
        ax.set_xlabel("entry of x")
    ax.set_ylabel(value_label)
    if log_scale:
        _use_log_scale(ax)
    return figure


def _draw_series(
    quantiles: _Floats,
    observed: _Floats,
    times: _Floats,
    labels: Sequence[str] | None,
    value_label: str,
    log_scale: bool,
) -> Figure:
    num_series = observed.shape[1]
    defaults = [f"x[:, {k}]" for k in range(num_series)] if num_series > 1 else [""]
    names = _check_labels(labels, num_series, defaults)
    figure = new_figure(6.4, 1.2 + 1.9 * num_series)
    axes = figure.subplots(num_series, 1, sharex=True, squeeze=False)[:, 0]
    order = np.argsort(times)
    for index, ax in enumerate(axes):
        tidy(ax)
        low, lower, median, upper, high = quantiles[:, order, index]
        at = times[order]
        wide, narrow = tint(PRIMARY, 0.22), tint(PRIMARY, 0.5)
        ax.fill_between(at, low, high, color=wide, lw=0, label="90 %")
        ax.fill_between(at, lower, upper, color=narrow, lw=0, label="50 %")
        ax.plot(at, median, color=PRIMARY, linewidth=1.4, label="median")
        _draw_observed(ax, times, observed[:, index])
        ax.set_title(names[index], loc="left", fontsize=9, color=INK)
        ax.set_ylabel(value_label)
        ax.margins(x=0.02)
        if log_scale:
            _use_log_scale(ax)
    if np.all(times == np.rint(times)):
        axes[-1].xaxis.set_major_locator(round_ticks(9, integer=True))
    figure.align_ylabels()
    return figure


def _use_log_scale(ax: Axes) -> None:
    """Logarithmic axis labelled by plain numbers."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,))
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_observed(ax: Axes, at: _Floats, observed: _Floats) -> None:
    ax.plot(
        at,
        observed,
        "o",
        color=INK,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label="observed",
        zorder=3,
    )


def _one_array(value: PyTree, name: str) -> _Floats:
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1:
        raise ValueError(
            f"{name} must be one array, got {describe(value)}. Draw its parts one "
            "by one."
        )
    return np.asarray(leaves[0], dtype=np.float64)


def _check_shapes(draws: _Floats, observed: _Floats, scalar: bool) -> _Floats:
    if scalar and draws.ndim == 1:
        draws = draws[:, None]
    if observed.ndim > 2 or draws.ndim < 2 or draws.shape[1:] != observed.shape:
        raise ValueError(
            "x_draws must be [S, ...] with x_observed of shape [K], [T] or [T, K], "
            f"got {list(draws.shape)} and {list(observed.shape)}."
        )
    return draws


def _keep_finite(draws: _Floats) -> _Floats:
    finite = np.isfinite(draws).reshape(len(draws), -1).all(axis=1)
    if not np.any(finite):
        raise ValueError("x_draws holds no data set without non-finite values.")
    if not np.all(finite):
        warnings.warn(
            f"{int(np.sum(~finite))} of {len(draws)} predictive data sets left out: "
            "they hold values that are not finite.",
            SbijaxWarning,
            stacklevel=3,
        )
    return draws[finite]


def _check_time(time: npt.ArrayLike | None, num_times: int) -> _Floats:
    times = np.arange(float(num_times)) if time is None else np.asarray(time, float)
    if times.shape != (num_times,):
        raise ValueError(
            f"time must hold one value for each of the {num_times} steps of "
            f"x_observed, got shape {list(times.shape)}."
        )
    return times


def _check_labels(
    labels: Sequence[str] | None, num_labels: int, defaults: list[str]
) -> list[str]:
    if labels is None:
        return defaults
    if len(labels) != num_labels:
        raise ValueError(f"labels must hold {num_labels} names, got {len(labels)}.")
    return list(labels)
