"""The loss figure."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.plots import loss_curve


class Info(NamedTuple):
    """The fields of training information that the figure reads."""

    train_loss: np.ndarray
    val_loss: np.ndarray
    num_epochs: object
    best_epoch: object


def make_info(num_epochs=60, size=100, spike=0.0):
    epochs = np.arange(size)
    loss = np.exp(-epochs / 10.0) + spike * (epochs == 0)
    train = np.where(epochs < num_epochs, loss - 0.1, np.nan)
    val = np.where(epochs < num_epochs, loss + 1e-4 * (epochs - 30.0) ** 2, np.nan)
    best = int(np.nanargmin(val))
    return Info(train, val, jnp.asarray(num_epochs), jnp.asarray(best))


def test_curves_and_best_epoch():
    info = make_info()
    (ax,) = loss_curve(info).axes
    train, val, best = ax.lines
    np.testing.assert_array_equal(train.get_xdata(), np.arange(1, 101))
    np.testing.assert_array_equal(train.get_ydata(), info.train_loss)
    np.testing.assert_array_equal(val.get_ydata(), info.val_loss)
    epoch = int(info.best_epoch)
    assert best.get_xdata().tolist() == [epoch + 1]
    assert best.get_ydata().tolist() == [info.val_loss[epoch]]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[:2] == ["training", "validation"]
    assert texts[2].endswith(f"in epoch {epoch + 1}")
    assert ax.get_xlim()[1] == 60.5


def test_first_epochs_do_not_flatten_the_rest():
    (plain,) = loss_curve(make_info()).axes
    (spiked,) = loss_curve(make_info(spike=1e4)).axes
    assert plain.get_ylim()[1] > 1.0
    assert spiked.get_ylim()[1] < 2.0


def test_epochs_beyond_the_last_are_not_drawn():
    info = make_info()._replace(num_epochs=40)
    (ax,) = loss_curve(info).axes
    assert np.isfinite(ax.lines[0].get_ydata()).sum() == 40


def test_vmapped_runs_are_drawn_together():
    runs = [make_info(num_epochs=n) for n in (40, 50, 60)]
    stacked = Info(
        *(np.stack([np.asarray(v) for v in vs]) for vs in zip(*runs, strict=True))
    )
    (ax,) = loss_curve(stacked).axes
    assert len(ax.lines) == 7
    assert len(ax.lines[-1].get_xdata()) == 3
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["training", "validation", "best epochs"]


def test_one_epoch_is_enough():
    info = Info(np.array([1.0, np.nan]), np.array([2.0, np.nan]), 1, 0)
    (ax,) = loss_curve(info).axes
    low, high = ax.get_ylim()
    assert low < 1.0
    assert high > 2.0


def test_bad_input_is_refused():
    empty = np.full(5, np.nan)
    with pytest.raises(ValueError, match="no finite validation loss"):
        loss_curve(Info(empty, empty, 0, 0))
    with pytest.raises(ValueError, match=r"got shapes \(1, 5\), \(1, 4\)"):
        loss_curve(Info(empty, empty[:4], 1, 0))
