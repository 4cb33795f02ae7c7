"""Colours, figures and axes shared by all plots.

Figures are made without pyplot: no window opens, nothing global is changed or
kept alive, and an interactive session shows a figure because it is returned.
"""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = [
    "ACCENT",
    "CYCLE",
    "GRID",
    "INK",
    "LEGEND",
    "MUTED",
    "PRIMARY",
    "grid_figure",
    "hide_axes",
    "new_figure",
    "round_ticks",
    "tidy",
    "tint",
]

# Hues of Okabe and Ito's palette, which stay apart for colour-blind readers.
PRIMARY = "#0072B2"
ACCENT = "#D55E00"
INK = "#24292F"
MUTED = "#6E7781"
GRID = "#D8DEE4"
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class _Figure(Figure):
    """A figure that notebooks show without any backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=144)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of the given size in inches."""
    figure = _Figure(figsize=(width, height), facecolor="white", dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    return figure


def grid_figure(
    num_panels: int, width: float = 2.6, height: float = 2.2, max_columns: int = 4
) -> tuple[Figure, list[Axes]]:
    """Make a figure with `num_panels` panels in rows of up to `max_columns`."""
    num_columns = min(num_panels, max_columns)
    if num_panels > max_columns:
        num_rows = -(-num_panels // max_columns)
        num_columns = -(-num_panels // num_rows)
    num_rows = -(-num_panels // num_columns)
    figure = new_figure(width * num_columns + 0.6, height * num_rows + 0.4)
    axes = figure.subplots(
        num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    ).ravel()
    for spare in axes[num_panels:]:
        spare.remove()
    for index, ax in enumerate(axes[:num_panels]):
        tidy(ax)
        ax.tick_params(labelbottom=index + num_columns >= num_panels)
    return figure, list(axes[:num_panels])


def tidy(ax: Axes) -> None:
    """Thin left and bottom spines, quiet ticks."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_linewidth(0.6)
        ax.spines[side].set_color(MUTED)
    ax.tick_params(width=0.6, length=3, color=MUTED, labelcolor=INK, labelsize=8)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.xaxis.label.set_fontsize(9)
    ax.yaxis.label.set_fontsize(9)
    ax.title.set_color(INK)


def hide_axes(ax: Axes, *sides: str) -> None:
    """Take away spines and ticks of some sides."""
    for side in sides:
        ax.spines[side].set_visible(False)
    if "left" in sides:
        ax.yaxis.set_visible(False)
    if "bottom" in sides:
        ax.xaxis.set_visible(False)


def round_ticks(num_ticks: int, **options: Any) -> MaxNLocator:
    """Locate about `num_ticks` ticks at multiples of 1, 2 or 5."""
    return MaxNLocator(num_ticks, steps=[1, 2, 5, 10], **options)


def tint(color: str, share: float) -> tuple[float, float, float]:
    """Mix a colour into white; `share` 1 is the colour itself."""
    red, green, blue = (1.0 - share * (1.0 - c) for c in to_rgb(color))
    return red, green, blue


LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8,
    "labelcolor": INK,
    "handlelength": 1.6,
}
