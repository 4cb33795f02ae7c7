"""Whole numbers in their cells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.estimators._counts import (
    Counts,
    cell_centres,
    find_counts,
    from_reals,
    is_count,
    jitter,
    to_reals,
)
from sbijax.estimators._data import row_keys

# Counts, whole numbers with a sign, numbers.
COUNTS = [Counts(jnp.array([True, True, False]), jnp.array([True, False, False]))]
X = np.array([[3.0, -2.0, 0.25], [0.0, 5.0, -1.5], [1.0, 0.0, 2.0]], np.float32)


def test_whole_numbers_are_found():
    counts = find_counts([X, X[:, 0]], jnp.ones(3))
    assert counts[0].whole.tolist() == [True, True, False]
    assert counts[0].positive.tolist() == [True, False, False]
    assert counts[1].whole
    assert counts[1].positive


@pytest.mark.parametrize("odd", [0.5, -1.0, np.nan, np.inf])
def test_rows_without_weight_do_not_count(odd):
    x = np.concatenate([X, np.full((1, 3), odd, np.float32)])
    seen, unseen = (find_counts([x], jnp.array([1.0, 1.0, 1.0, w])) for w in (1.0, 0.0))
    assert not seen[0].positive[0]
    assert unseen[0].positive[0]
    assert not jnp.any(find_counts([x], jnp.zeros(4))[0].whole)


def test_floats_without_fractions_are_no_counts():
    # Above 2^23 a float32 is whole whatever it stands for.
    large = jnp.array([1.5e8, 3.2e8, 7.7e9])
    assert not find_counts([large], jnp.ones(3))[0].whole
    # A heavy tail of counts may reach there.
    assert find_counts([large.at[:2].set(3.0)], jnp.ones(3))[0].whole


def test_jitter_fills_the_cells_and_leaves_numbers_alone():
    x = np.tile(X, (2_000, 1))
    keys = row_keys(jax.random.key(0), jnp.arange(len(x), dtype=float))
    moved = np.asarray(jax.vmap(partial(jitter, COUNTS))(keys, [x])[0])
    shift = moved - x
    np.testing.assert_array_equal(shift[:, 2], 0.0)
    for d in (0, 1):
        assert 0.0 <= shift[:, d].min()
        assert shift[:, d].max() <= 1.0
        assert abs(shift[:, d].mean() - 0.5) < 5 * (1 / 12 / len(x)) ** 0.5
        assert abs(shift[:, d].var() - 1 / 12) < 0.005
    assert abs(np.corrcoef(shift[:, 0], shift[:, 1])[0, 1]) < 5 / len(x) ** 0.5
    np.testing.assert_array_equal(
        cell_centres(COUNTS, [X])[0], X + np.array([0.5, 0.5, 0.0], np.float32)
    )
    # A fraction belongs to the cell of the number below it.
    centres = cell_centres(COUNTS, [jnp.array([3.7, -1.2, 3.7])])[0]
    np.testing.assert_allclose(centres, [3.5, -1.5, 3.7])


def test_the_key_of_a_row_is_that_of_its_numbers():
    with jax.debug_key_reuse(False):  # of its loops
        counts = jax.random.poisson(jax.random.key(1), 30.0, (3_000, 10))
    counts = counts.astype(jnp.float32)
    rows = {"a": counts, "b": counts[:, 0] > 30, "c": counts.astype(jnp.bfloat16)}

    def keys_of(rows, seed=0):
        keys = row_keys(jax.random.key(seed), rows)
        return np.asarray(jax.random.key_data(keys))

    keys = keys_of(rows)
    assert len(np.unique(keys, axis=0)) == len(np.unique(counts, axis=0))
    order = jax.random.permutation(jax.random.key(2), 3_000)[:200]
    some = jax.tree.map(lambda leaf: leaf[order], rows)
    np.testing.assert_array_equal(keys_of(some), keys[order])
    assert not np.any(np.all(keys_of(rows, seed=3) == keys, axis=1))


def test_reals_go_back_to_the_numbers_of_their_cells():
    for place in (0.01, 0.5, 0.99):
        v = X + place * np.array([1.0, 1.0, 0.0], np.float32)
        for before, after in zip(v, X, strict=True):
            reals, _ = to_reals(COUNTS, [jnp.asarray(before)])
            np.testing.assert_array_equal(from_reals(COUNTS, reals)[0], after)
    # A density reaches all of the line.
    far = from_reals(COUNTS, [jnp.array([-90.0, -0.7, -0.7])])[0]
    np.testing.assert_allclose(far, [0.0, -1.0, -0.7])


def test_the_line_has_counts_alone():
    for first, possible in ((0.0, True), (-1.0, False)):
        x = [jnp.array([first, -3.0, -3.5])]
        assert bool(is_count(COUNTS, x)) == possible
        assert np.isfinite(to_reals(COUNTS, x)[0][0]).all()


def test_the_slope_of_the_reals_is_their_derivative():
    with jax.enable_x64(True):
        counts = jax.tree.map(lambda leaf: leaf[:, None], COUNTS)
        for v in (X[0] + 0.3, X[2] + 0.5):
            v = jnp.asarray(v, float)[:, None]
            reals, log_det = to_reals(counts, [v])
            slopes = jax.jacfwd(lambda v: to_reals(counts, [v])[0][0].ravel())(v)
            diagonal = jnp.diagonal(slopes.reshape(3, 3))
            np.testing.assert_allclose(log_det, jnp.sum(jnp.log(diagonal)), rtol=1e-9)


def test_without_leaves_there_is_nothing_to_do():
    assert find_counts([], jnp.ones(3)) == []
    assert jitter([], jax.random.key(0), []) == []
    reals, log_det = to_reals([], [])
    assert reals == []
    assert log_det == 0.0
