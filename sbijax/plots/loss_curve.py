"""Training and validation loss by epoch."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sbijax.plots._style import ACCENT, LEGEND, PRIMARY, new_figure, round_ticks, tidy

__all__ = ["loss_curve"]

_Floats = npt.NDArray[np.float64]


class _TrainInfo(Protocol):
    @property
    def train_loss(self) -> npt.ArrayLike: ...
    @property
    def val_loss(self) -> npt.ArrayLike: ...
    @property
    def num_epochs(self) -> npt.ArrayLike: ...
    @property
    def best_epoch(self) -> npt.ArrayLike: ...


def loss_curve(info: _TrainInfo) -> Figure:
    """Draw the losses of a training run, or of several that were vmapped.

    Args:
        info: what `sbijax.train` reports: `train_loss` and `val_loss` `[E]`,
            `num_epochs` and `best_epoch` (from 0) scalars, or all of them with
            a leading axis of runs.

    Returns:
        The figure, with the best epoch of each run marked.

    Raises:
        ValueError: no epoch was run, or no loss is finite.

    Example:
        >>> import numpy as np
        >>> from typing import NamedTuple
        >>> class Info(NamedTuple):
        ...     train_loss: np.ndarray
        ...     val_loss: np.ndarray
        ...     num_epochs: int
        ...     best_epoch: int
        >>> loss = np.array([3.0, 2.0, 2.5, np.nan])
        >>> figure = loss_curve(Info(loss - 0.5, loss, num_epochs=3, best_epoch=1))
        >>> figure.axes[0].get_xlabel()
        'epoch'
    """
    train, val = (
        np.atleast_2d(np.asarray(loss, dtype=np.float64))
        for loss in (info.train_loss, info.val_loss)
    )
    num_epochs = np.atleast_1d(np.asarray(info.num_epochs)).astype(int)
    best = np.atleast_1d(np.asarray(info.best_epoch)).astype(int)
    if train.shape != val.shape or not len(train) == len(num_epochs) == len(best):
        raise ValueError(
            "info must hold train_loss and val_loss [E] with scalar num_epochs and "
            f"best_epoch; got shapes {train.shape}, {val.shape}, "
            f"{num_epochs.shape} and {best.shape}."
        )
    beyond = np.arange(train.shape[1]) >= num_epochs[:, None]
    train, val = np.where(beyond, np.nan, train), np.where(beyond, np.nan, val)
    if not np.any(np.isfinite(val)):
        raise ValueError("info holds no finite validation loss to draw.")
    return _draw(train, val, num_epochs, best)


def _draw(
    train: _Floats,
    val: _Floats,
    num_epochs: npt.NDArray[np.int64],
    best: npt.NDArray[np.int64],
) -> Figure:
    figure = new_figure(5.2, 3.2)
    ax = figure.subplots()
    tidy(ax)
    num_runs = len(train)
    epochs = np.arange(1, train.shape[1] + 1)
    width = 1.4 if num_runs == 1 else 0.8
    for run in range(num_runs):
        labels = ("training", "validation") if run == 0 else (None, None)
        ax.plot(epochs, train[run], color=PRIMARY, lw=width, label=labels[0])
        ax.plot(epochs, val[run], color=ACCENT, lw=width, label=labels[1])
    lowest = val[np.arange(num_runs), best]
    label = f"best: {lowest[0]:.3g} in epoch {best[0] + 1}"
    ax.plot(
        best + 1,
        lowest,
        "o",
        color=ACCENT,
        markersize=6,
        markeredgecolor="white",
        zorder=3,
        label=label if num_runs == 1 else "best epochs",
    )
    ax.set_ylim(*_limits(train, val))
    ax.set_xlim(0.5 if num_epochs.max() < 20 else 0, num_epochs.max() + 0.5)
    ax.xaxis.set_major_locator(round_ticks(9, integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    ax.legend(loc="upper right", **LEGEND)
    return figure


def _limits(train: _Floats, val: _Floats) -> tuple[float, float]:
    """All losses, unless those of the first epochs dwarf the rest."""
    losses = np.concatenate([train, val])
    settled = losses[:, max(1, int(0.05 * losses.shape[1])) :]
    finite = losses[np.isfinite(losses)]
    low, high = finite.min(), finite.max()
    if np.any(np.isfinite(settled)):
        later = np.nanmax(np.where(np.isfinite(settled), settled, np.nan))
        if high - low > 3.0 * (later - low) > 0:
            high = later + 0.2 * (later - low)
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad
