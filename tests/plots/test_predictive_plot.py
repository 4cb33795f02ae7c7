"""The predictive figure."""

import numpy as np
import pytest

from sbijax.base import SbijaxWarning
from sbijax.plots import predictive

RNG = np.random.default_rng(0)
SERIES = np.exp(RNG.normal(size=(300, 21, 2)))
OBSERVED = np.exp(RNG.normal(size=(21, 2)))
YEARS = np.arange(1900, 1921)


def band_at(collection, x):
    vertices = collection.get_paths()[0].vertices
    heights = vertices[np.isclose(vertices[:, 0], x), 1]
    return heights.min(), heights.max()


def test_series_has_a_panel_per_component():
    figure = predictive(
        SERIES,
        OBSERVED,
        time=YEARS,
        labels=["hare", "lynx"],
        time_label="year",
        value_label="pelts",
    )
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["hare", "lynx"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["pelts", "pelts"]
    assert figure.axes[-1].get_xlabel() == "year"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["90 %", "50 %", "median", "observed"]


def test_bands_hold_their_share_of_the_draws():
    figure = predictive(SERIES, OBSERVED, time=YEARS)
    for k, ax in enumerate(figure.axes):
        wide, narrow = ax.collections
        for t in (0, 7, 20):
            draws = SERIES[:, t, k]
            for band, ends in ((wide, (0.05, 0.95)), (narrow, (0.25, 0.75))):
                expected = np.quantile(draws, ends)
                np.testing.assert_allclose(band_at(band, YEARS[t]), expected)
        median, observed = ax.lines
        np.testing.assert_allclose(median.get_ydata(), np.median(SERIES[..., k], 0))
        np.testing.assert_allclose(observed.get_ydata(), OBSERVED[:, k])
        np.testing.assert_array_equal(observed.get_xdata(), YEARS)


def test_times_out_of_order_are_sorted():
    order = RNG.permutation(21)
    figure = predictive(SERIES[:, order, 0], OBSERVED[order, 0], time=YEARS[order])
    (ax,) = figure.axes
    median, observed = ax.lines
    np.testing.assert_array_equal(median.get_xdata(), YEARS)
    np.testing.assert_allclose(median.get_ydata(), np.median(SERIES[..., 0], 0))
    np.testing.assert_allclose(observed.get_ydata(), OBSERVED[order, 0])


def test_vector_has_an_interval_per_entry():
    figure = predictive(SERIES[:, 0], OBSERVED[0], labels=["mean", "sd"])
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["mean", "sd"]
    wide, narrow = ax.collections
    for collection, ends in ((wide, (0.05, 0.95)), (narrow, (0.25, 0.75))):
        drawn = np.array([segment[:, 1] for segment in collection.get_segments()])
        np.testing.assert_allclose(drawn.T, np.quantile(SERIES[:, 0], ends, axis=0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), OBSERVED[0])


@pytest.mark.parametrize("num_entries", [1, 10, 60])
def test_vectors_of_any_length_are_drawn(num_entries):
    figure = predictive(RNG.normal(size=(20, num_entries)), np.zeros(num_entries))
    figure.canvas.draw()
    assert len(figure.axes[0].collections[0].get_segments()) == num_entries


def test_scalar_data_is_one_entry():
    figure = predictive(RNG.normal(size=50), 0.3)
    assert figure.axes[0].lines[1].get_ydata().tolist() == [0.3]


def test_missing_observations_leave_gaps():
    observed = OBSERVED.copy()
    observed[3, 0] = np.nan
    figure = predictive(SERIES, observed)
    assert np.isnan(figure.axes[0].lines[1].get_ydata()[3])


def test_log_scale_is_labelled_by_plain_numbers():
    figure = predictive(SERIES, OBSERVED, log_scale=True)
    figure.canvas.draw()
    for ax in figure.axes:
        assert ax.get_yscale() == "log"
        shown = [text.get_text() for text in ax.get_yticklabels()]
        assert shown
        assert all(float(text) > 0 and "$" not in text for text in shown if text)
    vector = predictive(SERIES[:, 0], OBSERVED[0], log_scale=True)
    assert vector.axes[0].get_yscale() == "log"


def test_failed_simulations_are_left_out_with_a_warning():
    broken = SERIES.copy()
    broken[:30, 4, 0] = np.nan
    with pytest.warns(SbijaxWarning, match="30 of 300 predictive data sets"):
        figure = predictive(broken, OBSERVED)
    expected = np.median(SERIES[30:, :, 0], axis=0)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"got \[300, 21, 2\] and \[21\]"):
        predictive(SERIES, OBSERVED[:, 0])
    with pytest.raises(ValueError, match="must be one array"):
        predictive({"a": SERIES, "b": SERIES}, OBSERVED)
    with pytest.raises(ValueError, match="no data set without"):
        predictive(SERIES * np.nan, OBSERVED)
    with pytest.raises(ValueError, match="42 observed"):
        predictive(SERIES, -OBSERVED, log_scale=True)
    with pytest.raises(ValueError, match=r"each of the 21 steps .* got shape \[20\]"):
        predictive(SERIES, OBSERVED, time=YEARS[1:])
    with pytest.raises(ValueError, match="labels must hold 2 names, got 1"):
        predictive(SERIES, OBSERVED, labels=["hare"])
