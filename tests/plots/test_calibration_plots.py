"""Rank and coverage figures."""

import numpy as np
import pytest

from sbijax.diagnostics import coverage, sbc_result
from sbijax.plots import coverage_curve, sbc_ranks
from sbijax.plots._style import ACCENT, PRIMARY

NAMES = ("alpha", "beta[0]", "beta[1]", "sigma", "log_prob")


def make_result(num_replicates=400, num_samples=99):
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, num_samples + 1, (num_replicates, 5))
    ranks[:, 1] = np.floor(rng.beta(0.6, 0.6, num_replicates) * (num_samples + 1))
    return sbc_result(ranks, NAMES, num_samples, num_parameters=4)


def test_ranks_have_a_panel_per_quantity():
    result = make_result()
    figure = sbc_ranks(result)
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(NAMES)
    p_text = [ax.get_title(loc="right") for ax in figure.axes]
    assert p_text[0] == f"p = {result.p_values[0]:.2g}"
    assert p_text[1] == "p < 0.001"


def test_curve_is_the_empirical_distribution_minus_uniform():
    result = make_result()
    for column, ax in enumerate(sbc_ranks(result).axes):
        x, y = ax.lines[-1].get_data()
        below = np.mean(result.ranks[:, column] < 50)
        assert y[np.argmin(np.abs(x - 0.5))] == pytest.approx(below - 0.5)
        assert (x[0], y[0], x[-1]) == (0.0, 0.0, 1.0)
        assert y[-1] == pytest.approx(0.0)
        low, high = ax.get_ylim()
        assert low < y.min()
        assert y.max() < high


def test_colour_tells_the_curves_that_leave_the_band():
    result = make_result()
    colors = [ax.lines[-1].get_color() for ax in sbc_ranks(result).axes]
    expected = [ACCENT if p < 0.05 else PRIMARY for p in result.p_values]
    assert colors == expected
    assert colors[1] == ACCENT
    assert PRIMARY in colors


@pytest.mark.parametrize(("num_panels", "num_rows"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_panels_are_arranged_in_rows(num_panels, num_rows):
    names = tuple(f"p{i}" for i in range(num_panels))
    ranks = np.random.default_rng(0).integers(0, 10, (50, num_panels))
    figure = sbc_ranks(sbc_result(ranks, names, 9))
    assert len(figure.axes) == num_panels
    tops = {round(ax.get_subplotspec().rowspan.start) for ax in figure.axes}
    assert len(tops) == num_rows


def test_coverage_has_a_line_per_region():
    result = coverage(make_result())
    (ax,) = coverage_curve(result).axes
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [*NAMES[:4], "highest density", "calibrated, 95 %"]
    lines = {line.get_label(): line for line in ax.lines}
    for name, column in zip(result.names, result.empirical.T, strict=True):
        x, y = lines[name].get_data()
        np.testing.assert_allclose(x[1:-1], result.nominal)
        np.testing.assert_allclose(y, [0.0, *column, 1.0])


def test_coverage_sorts_levels_and_draws_the_band():
    result = coverage(make_result(), levels=[0.9, 0.5])
    (ax,) = coverage_curve(result).axes
    x, y = ax.lines[1].get_data()
    assert x.tolist() == [0.0, 0.5, 0.9, 1.0]
    assert y.tolist() == [0.0, *result.empirical[::-1, 0], 1.0]
    band = ax.collections[0].get_paths()[0]
    middle = np.array([[0.5, result.lower[1] + 1e-3], [0.5, result.upper[1] - 1e-3]])
    assert band.contains_points(middle).all()
    assert not band.contains_points([[0.5, result.upper[1] + 1e-3]]).any()


def test_many_parameters_share_one_legend_entry():
    ranks = np.random.default_rng(0).integers(0, 10, (50, 20))
    names = tuple(f"p{i}" for i in range(20))
    (ax,) = coverage_curve(coverage(sbc_result(ranks, names, 9))).axes
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["20 parameters", "calibrated, 95 %"]
    assert len(ax.lines) == 21
