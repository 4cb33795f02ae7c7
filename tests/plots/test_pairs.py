"""The pair plot: panels, labels, overlays, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from sbijax.plots import pairs

RNG = np.random.default_rng(0)
DRAWS = {"alpha": RNG.normal(size=400), "beta": RNG.uniform(size=(400, 2))}
TRUTH = {"alpha": 0.5, "beta": np.array([0.2, 0.9])}
NAMES = ["alpha", "beta[0]", "beta[1]"]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("num_dims", [1, 2, 5])
def test_one_panel_per_marginal_and_pair(num_dims):
    figure = pairs(RNG.normal(size=(200, num_dims)))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == num_dims * (num_dims + 1) // 2
    labels = [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
    assert labels == [f"theta[{i}]" for i in range(num_dims)]


def test_labels_and_legend():
    figure = pairs(DRAWS, truth=TRUTH, reference=DRAWS)
    xlabels = [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
    ylabels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert (xlabels, ylabels) == (NAMES, NAMES[1:])
    assert legend_texts(figure) == ["draws: 95, 80, 50 %", "reference", "truth"]
    assert legend_texts(pairs(DRAWS)) == ["draws: 95, 80, 50 %"]
    renamed = pairs(DRAWS, labels=["a", "b", "c"])
    assert [ax.get_xlabel() for ax in renamed.axes[-3:]] == ["a", "b", "c"]


def test_truth_is_marked_where_it_is():
    figure = pairs(DRAWS, truth=TRUTH)
    last = figure.axes[3:]  # alpha-beta[1], beta[0]-beta[1], beta[1]
    assert [line.get_xdata()[0] for line in last[-1].lines[-1:]] == [0.9]
    for ax, x in zip(last[:2], [0.5, 0.2], strict=True):
        (marker,) = [line for line in ax.lines if line.get_marker() == "o"]
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (x, 0.9)


def test_limits_hold_draws_truth_and_reference():
    far = {"alpha": 40.0, "beta": np.array([0.2, 0.9])}
    shifted = {"alpha": DRAWS["alpha"] - 30.0, "beta": DRAWS["beta"]}
    figure = pairs(DRAWS, truth=far, reference=shifted)
    low, high = figure.axes[0].get_xlim()
    assert low < -31.0
    assert high > 40.0
    assert figure.axes[1].get_xlim() == (low, high)


def test_drawn_regions_hold_their_share_of_the_draws():
    draws = np.random.default_rng(1).normal(size=(5000, 2))
    figure = pairs(draws, reference=draws)
    filled, lines = figure.axes[1].collections
    for contours in (filled, lines):
        shares = [
            np.mean(
                np.any(
                    [
                        part.contains_points(draws)
                        for part in path._iter_connected_components()
                    ],
                    axis=0,
                )
            )
            for path in contours.get_paths()
        ]
        assert len(shares) == 3
    # The outlines hold 95, 80 and 50 % of 5,000 draws, smoothed.
    np.testing.assert_allclose(shares, [0.95, 0.8, 0.5], atol=0.03)


def test_uniform_regions_reach_the_bound():
    draws = np.random.default_rng(1).uniform(size=(5000, 2))
    figure = pairs(draws)
    corners = [path.get_extents() for path in figure.axes[1].collections[0].get_paths()]
    assert corners[0].xmin == pytest.approx(0.0, abs=0.01)
    assert corners[0].ymax == pytest.approx(1.0, abs=0.01)
    marginal = figure.axes[0].lines[0].get_ydata()
    assert np.all(marginal[2:-2] > 0.8)


def test_accepts_jax_arrays_scalars_and_constant_draws():
    assert len(pairs(jnp.zeros(50)).axes) == 1
    assert pairs({"a": DRAWS["alpha"]}, truth={"a": 1}).axes[0].get_xlabel() == "a"
    constant = {"alpha": np.ones(400), "beta": DRAWS["beta"]}
    figure = pairs(constant, reference=constant)
    figure.canvas.draw()
    assert len(figure.axes) == 6


def test_array_reference_and_truth_go_with_named_draws():
    matrix = np.column_stack([DRAWS["alpha"], DRAWS["beta"]])
    figure = pairs(DRAWS, reference=matrix, truth=np.array([0.0, 0.5, 0.5]))
    assert len(legend_texts(figure)) == 3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="draws holds non-finite values in 1 of 3"):
        pairs(np.array([0.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="one length S"):
        pairs({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        pairs(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="at most 15"):
        pairs(np.zeros((5, 16)))
    with pytest.raises(ValueError, match="reference must hold the parameters of draws"):
        pairs(DRAWS, reference={"alpha": DRAWS["alpha"]})
    with pytest.raises(ValueError, match="reference must hold the parameters of draws"):
        pairs({"a": np.zeros(9)}, reference={"b": np.zeros(9)})
    with pytest.raises(ValueError, match=r"truth must be one theta .* got \{gamma"):
        pairs(DRAWS, truth={"gamma": np.zeros(3)})
    with pytest.raises(ValueError, match="truth must be one theta"):
        pairs(DRAWS, truth=DRAWS)
    with pytest.raises(ValueError, match=r"beta\[1\]; got 2"):
        pairs(DRAWS, labels=["a", "b"])
