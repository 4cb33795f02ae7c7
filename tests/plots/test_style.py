"""No plot leaves a trace in matplotlib's global state."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from sbijax import plots
from sbijax.diagnostics import coverage, sbc_result
from sbijax.plots._style import new_figure, tint

RANKS = sbc_result(np.arange(100)[:, None], ("alpha",), 99)
FIGURES = {
    "pairs": lambda: plots.pairs(np.random.default_rng(0).normal(size=(50, 2))),
    "sbc_ranks": lambda: plots.sbc_ranks(RANKS),
    "coverage_curve": lambda: plots.coverage_curve(coverage(RANKS)),
    "predictive": lambda: plots.predictive(np.zeros((9, 3)), np.zeros(3)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_open_figure_and_no_changed_setting(name, tmp_path):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 2000
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_notebooks_get_a_picture():
    figure = new_figure(2.0, 1.0)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_tint_mixes_with_white():
    assert tint("#000000", 1.0) == (0.0, 0.0, 0.0)
    assert tint("#000000", 0.25) == (0.75, 0.75, 0.75)
