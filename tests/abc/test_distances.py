"""Distances of approximate Bayesian computation against numpy and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sbijax as sj
from sbijax import abc
from sbijax.abc.distances import as_distance


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, np.inf])
def test_p_norm_of_scaled_differences(p):
    rows, weight = normal(0, 50, 3) * [1.0, 10.0, 0.1], np.ones(50)
    rows[:5], weight[:5] = 1e6, 0.0  # rows without weight do not count
    distance = abc.p_norm(p)
    scale = distance.fit(jnp.asarray(rows), jnp.asarray(weight))
    kept = rows[5:]
    expected = stats.median_abs_deviation(kept, axis=0, scale="normal")
    np.testing.assert_allclose(scale, expected, rtol=1e-4)
    found = distance.between(scale, jnp.asarray(kept[0]), jnp.asarray(kept[1]))
    exact = np.linalg.norm((kept[0] - kept[1]) / expected, ord=p)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_entries_that_do_not_vary_are_not_scaled():
    rows = {"a": jnp.ones((9, 2)), "b": jnp.arange(9.0)}
    scale = abc.euclidean().fit(rows, jnp.ones(9))
    assert scale.tolist()[:2] == [1.0, 1.0]


@pytest.mark.parametrize("shown", [7, 12])
def test_wasserstein_of_numbers(shown):
    a, b = normal(1, 12), 0.5 + 2.0 * normal(2, 9)
    first = sj.Trials(jnp.asarray(a), jnp.arange(12) < shown)
    second = sj.Trials(jnp.asarray(b), jnp.ones(9, bool))
    found = jax.jit(abc.wasserstein().between)({}, first, second)
    exact = stats.wasserstein_distance(a[:shown], b)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_hidden_rows_have_no_effect():
    a, b = normal(1, 12, 2), normal(2, 9, 2)
    mask = jnp.arange(12) < 7
    for distance in (abc.wasserstein(), abc.mmd()):
        values = [
            distance.between(
                {},
                sj.Trials(jnp.where(mask[:, None], a, hidden), mask),
                sj.Trials(jnp.asarray(b), jnp.ones(9, bool)),
            )
            for hidden in (0.0, 1e3)
        ]
        np.testing.assert_allclose(*values, rtol=1e-6)
        assert values[0] > 0


def test_sliced_wasserstein_of_a_shift():
    a = jnp.asarray(normal(3, 40, 2))
    shift = jnp.array([3.0, 4.0])
    found = float(abc.wasserstein(num_directions=500).between({}, a + shift, a))
    # The mean of |cos| over directions in the plane is 2 / pi.
    assert abs(found - 5.0 * 2.0 / np.pi) < 0.2


def test_mmd_is_that_of_double_sums():
    a, b = normal(4, 8, 2), 1.0 + normal(5, 6, 2)

    def mean(u, v):
        return np.mean([np.exp(-0.5 * np.sum((p - q) ** 2)) for p in u for q in v])

    expected = np.sqrt(mean(a, a) - 2.0 * mean(a, b) + mean(b, b))
    found = abc.mmd(length_scale=1.0).between({}, jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: abc.p_norm(0.5), ValueError, "p must be at least 1, got 0.5"),
        (lambda: abc.p_norm("2"), TypeError, "p must be a positive number"),
        (lambda: abc.wasserstein(num_directions=0), ValueError, "num_directions"),
        (lambda: abc.mmd(length_scale=-1.0), ValueError, "length_scale must be pos"),
        (lambda: as_distance(3.0), TypeError, "distance must be a Distance"),
        (
            lambda: as_distance(lambda s, o: s - o).between({}, jnp.ones(2), 0.0),
            ValueError,
            "distance must return one number",
        ),
        (
            lambda: abc.wasserstein().between({}, jnp.ones(()), jnp.ones(())),
            ValueError,
            r"x must be Trials, or an array \[T\]",
        ),
        (
            lambda: abc.euclidean().between(1.0, *[sj.make_trials(np.ones(3))] * 2),
            ValueError,
            "Give distance=abc.wasserstein",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
