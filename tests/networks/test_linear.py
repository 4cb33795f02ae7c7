"""The linear baseline: least squares, white residuals, weights, inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.networks import linear
from sbijax.networks.linear import fit_linear, from_residual, stride, to_residual

RNG = np.random.default_rng(0)
SLOPE = np.array([[1.0, 0.5], [-2.0, 0.0], [0.3, 1.0]])
NOISE = np.array([[1.0, 0.0], [0.8, 0.5]])


def gaussian_data(num_rows):
    features = RNG.normal(size=(num_rows, 3))
    noise = RNG.normal(size=(num_rows, 2)) @ NOISE.T
    targets = np.array([10.0, -3.0]) + features @ SLOPE + noise
    return jnp.asarray(features), jnp.asarray(targets)


def residuals(stats, features, targets):
    return jax.vmap(to_residual, in_axes=(None, 0, 0))(stats, targets, features)


def test_residuals_of_gaussian_data_are_white():
    features, targets = gaussian_data(5_000)
    stats = jax.jit(fit_linear)(features, targets, jnp.ones(5_000))
    y = np.asarray(residuals(stats, features, targets))
    np.testing.assert_allclose(y.mean(axis=0), 0.0, atol=1e-3)
    # The variance is raised by 1e-4 of the target's before whitening.
    np.testing.assert_allclose(np.cov(y.T), np.eye(2), atol=5e-3)
    both = np.corrcoef(np.concatenate([y, features], axis=1).T)
    np.testing.assert_allclose(both[:2, 2:], 0.0, atol=5e-3)


def test_density_of_gaussian_data_is_the_conditional():
    # Standard normal residuals with the log-determinant are log p(z | f).
    features, targets = gaussian_data(20_000)
    stats = fit_linear(features, targets, jnp.ones(20_000))
    y = np.asarray(residuals(stats, features, targets))
    log_q = -0.5 * np.sum(y**2 + np.log(2 * np.pi), axis=1) + float(stats.log_det)
    entropy = np.log(2 * np.pi * np.e) + 0.5 * np.linalg.slogdet(NOISE @ NOISE.T)[1]
    # Two squares of a normal: the sd of the mean is 1 / sqrt(N).
    np.testing.assert_allclose(-log_q.mean(), entropy, atol=5 / np.sqrt(20_000))


def test_inverse_and_log_det():
    features, targets = gaussian_data(300)
    stats = fit_linear(features, targets, jnp.ones(300))
    y = to_residual(stats, targets[0], features[0])
    np.testing.assert_allclose(
        from_residual(stats, y, features[0]), targets[0], rtol=1e-4, atol=1e-4
    )
    jacobian = jax.jacfwd(lambda z: to_residual(stats, z, features[0]))(targets[0])
    np.testing.assert_allclose(
        stats.log_det, jnp.linalg.slogdet(jacobian)[1], rtol=1e-4
    )


def test_rows_of_weight_zero_have_no_effect():
    features, targets = gaussian_data(100)
    one = fit_linear(features, targets, jnp.ones(100))
    junk = jnp.full((50, 3), 1e3), jnp.full((50, 2), -1e3)
    two = fit_linear(
        jnp.concatenate([junk[0], features]),
        jnp.concatenate([junk[1], targets]),
        jnp.concatenate([jnp.zeros(50), jnp.ones(100)]),
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_weights_count_rows():
    features, targets = gaussian_data(100)
    counts = RNG.integers(1, 4, 100)
    one = fit_linear(features, targets, jnp.asarray(counts, jnp.float32))
    two = fit_linear(
        jnp.repeat(features, counts, axis=0),
        jnp.repeat(targets, counts, axis=0),
        jnp.ones(counts.sum()),
    )
    # Repeated rows count for the choice of the penalty, which is all but 0 here.
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.03, atol=0.01)


CASES = {
    "one_row": lambda: (np.ones((1, 2)), np.ones((1, 2))),
    "few_rows": lambda: (RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))),
    "no_features": lambda: (np.zeros((20, 0)), RNG.normal(size=(20, 2))),
    "constant_feature": lambda: (np.ones((50, 2)), RNG.normal(size=(50, 2))),
    "copied_feature": lambda: (
        np.repeat(RNG.normal(size=(50, 1)), 3, axis=1),
        RNG.normal(size=(50, 2)),
    ),
    "constant_target": lambda: (RNG.normal(size=(50, 1)), np.full((50, 2), 7.0)),
    "copied_target": lambda: (
        RNG.normal(size=(50, 1)),
        np.repeat(RNG.normal(size=(50, 1)), 2, axis=1),
    ),
    "no_noise": lambda: (
        np.linspace(-1, 1, 50)[:, None],
        np.linspace(-1, 1, 50)[:, None] * np.array([3.0, -1.0]),
    ),
    "many_features": lambda: (
        RNG.normal(size=(30, 1_500)),
        RNG.normal(size=(30, 2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_degenerate_data(name):
    features, targets = (jnp.asarray(a, jnp.float32) for a in CASES[name]())
    stats = fit_linear(features, targets, jnp.ones(len(targets)))
    assert np.isfinite(stats.log_det)
    y = residuals(stats, features, targets)
    assert np.all(np.isfinite(y))
    assert np.max(np.abs(y)) < 200.0
    back = jax.vmap(from_residual, in_axes=(None, 0, 0))(stats, y, features)
    np.testing.assert_allclose(back, targets, rtol=1e-3, atol=1e-3)


def test_what_is_fitted_is_at_most_one_number_for_ten_rows():
    # 20 rows have room for 2, one of which is the mean.
    features, targets = gaussian_data(20)
    least_squares = jnp.linalg.lstsq(features - features.mean(0), targets)[0]
    stats = fit_linear(features, targets, jnp.ones(20))
    assert np.linalg.norm(stats.slope) < 0.5 * np.linalg.norm(least_squares)
    # What counts are rows with weight.
    features, targets = gaussian_data(100)
    weight = jnp.where(jnp.arange(100) < 9, 1.0, 0.0)
    assert np.all(fit_linear(features, targets, weight).slope == 0)


def test_the_penalty_predicts_new_rows():
    # 100 features, ten of which matter: least squares would add 1 / 9 to the error.
    rng = np.random.default_rng(1)
    slope = np.where(np.arange(100) < 10, 0.1, 0.0)[:, None]
    features = jnp.asarray(rng.normal(size=(1_000, 100)), jnp.float32)
    targets = features @ slope + rng.normal(size=(1_000, 1))
    stats = fit_linear(features, targets, jnp.ones(1_000))
    new = rng.normal(size=(20_000, 100))
    y = residuals(stats, jnp.asarray(new), new @ slope + rng.normal(size=(20_000, 1)))
    error = float(jnp.mean(y**2) * stats.factor[0, 0] ** 2 * stats.scale[0] ** 2)
    assert 1.0 < error < 1.08
    # The residuals of new rows are as large as those of the fit were thought to be.
    np.testing.assert_allclose(np.mean(y**2), 1.0, atol=0.1)


def test_large_matrices_are_thinned(monkeypatch):
    assert stride(1_000_000, 10) == 1
    assert stride(1_000_000, 512) == 10
    features, targets = gaussian_data(6_000)
    whole = fit_linear(features, targets, jnp.ones(6_000))
    monkeypatch.setattr(linear, "_MAX_NUMBERS", 6_000)
    thinned = fit_linear(features, targets, jnp.ones(6_000))
    kept = fit_linear(features[::3], targets[::3], jnp.ones(2_000))
    jax.tree.map(np.testing.assert_array_equal, thinned, kept)
    np.testing.assert_allclose(thinned.slope, whole.slope, atol=0.05)
