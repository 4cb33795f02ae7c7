"""Densities behind the pair plot, against distributions that are known."""

import numpy as np
import pytest
from scipy import stats

from sbijax.plots._density import density_1d, density_2d, highest_density_levels

SAMPLES = {
    "normal": (stats.norm(3.0, 2.0), 4000),
    "uniform": (stats.uniform(0.0, 0.1), 4000),
    "exponential": (stats.expon(), 4000),
    "beta": (stats.beta(2.0, 1.0), 4000),
}


def draw(distribution, num_draws, seed=0):
    return distribution.rvs(num_draws, random_state=np.random.default_rng(seed))


@pytest.mark.parametrize("name", SAMPLES)
def test_density_is_close_to_the_truth_up_to_the_bounds(name):
    distribution, num_draws = SAMPLES[name]
    density = density_1d(draw(distribution, num_draws))
    (x,), (ends,) = density.axes, density.ends
    cell = (ends[1] - ends[0]) / len(x)
    assert np.sum(density.values) * cell == pytest.approx(1.0, abs=1e-6)
    # The total variation of a good estimate from 4,000 draws is 2 to 4 %; an
    # estimate that leaks over a bound, or blurs it, loses 5 % and more.
    error = 0.5 * np.sum(np.abs(density.values - distribution.pdf(x))) * cell
    assert error < 0.045


def test_uniform_is_level_at_the_bound():
    density = density_1d(draw(stats.uniform(), 10_000))
    assert np.all(np.abs(density.values[[0, -1]] - 1.0) < 0.1)
    np.testing.assert_allclose(density.ends, [[0.0, 1.0]], atol=0.002)


def test_narrow_modes_are_not_blurred():
    rng = np.random.default_rng(0)
    modes = rng.choice([-1.0, 1.0], 5000) + 0.05 * rng.normal(size=5000)
    density = density_1d(modes)
    peak = 0.5 / (0.05 * np.sqrt(2 * np.pi))
    assert density.values.max() > 0.8 * peak
    middle = np.abs(density.axes[0]) < 0.5
    assert density.values[middle].max() < 0.01


def test_repeated_draws_are_not_taken_for_modes():
    plain = draw(stats.norm(), 500)
    repeated = np.repeat(plain, 10)
    changes = [
        np.sum(np.diff(np.sign(np.diff(density_1d(d).values))) != 0)
        for d in (plain, repeated)
    ]
    assert changes[1] <= max(changes[0], 6)


def test_levels_hold_their_mass():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20_000, 2)) * [1.0, 5.0]
    density = density_2d(draws)
    levels = highest_density_levels(density, (0.5, 0.8, 0.95))
    assert levels == sorted(levels)
    heights = stats.multivariate_normal([0.0, 0.0], [1.0, 25.0]).pdf(draws)
    for level, mass in zip(levels, (0.95, 0.8, 0.5), strict=True):
        assert np.mean(heights > level) == pytest.approx(mass, abs=0.03)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e8])
def test_constant_draws_have_a_grid(value):
    density = density_1d(np.full(50, value))
    assert np.all(np.isfinite(density.values))
    assert density.ends[0, 0] < value < density.ends[0, 1]


def test_a_far_draw_does_not_stretch_the_grid():
    draws = np.append(draw(stats.norm(), 5000), 1e6)
    assert density_1d(draws).ends[0, 1] < 10.0
