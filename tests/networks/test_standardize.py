"""Standardizers: inverse, log-determinant, weights and awkward data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.networks import no_standardizer, robust, zscore

RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.normal(5.0, 2.0, (200, 3)),
    "heavy_tails": RNG.standard_cauchy((200, 2)) * 10.0,
    "lognormal": np.exp(3.0 * RNG.normal(size=(200, 2))),
    "decades": np.logspace(-15.0, 12.0, 200),
    "counts": RNG.poisson(0.05, (200, 4)).astype(float),
    "one_outlier": np.concatenate([np.linspace(0.0, 1.0, 199), [1e6]]),
    "huge": np.concatenate([np.linspace(0.0, 1.0, 199), [1e25]]),
    "constant": np.full((50, 2), 7.0),
    "constant_large": np.full((50, 1), 1e8),
    "constant_zero": np.zeros((50, 2)),
    "tiny_spread": 1000.0 + RNG.normal(size=(100, 1)),
    "scalar": RNG.normal(size=100),
    "image": RNG.normal(size=(30, 2, 3, 1)),
    "single": np.array([[3.0, -1.0]]),
    "pair": np.array([[0.0], [1.0]]),
}
KINDS = {"zscore": zscore(), "robust": robust(), "none": no_standardizer()}


def fit(kind, values, weight=None):
    values = jnp.asarray(values, jnp.float32)
    weight = jnp.ones(len(values)) if weight is None else jnp.asarray(weight)
    return values, jax.jit(KINDS[kind].fit)(values, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DATA)
def test_forward_is_finite_and_inverted(kind, name):
    values, stats = fit(kind, DATA[name])
    standardizer = KINDS[kind]
    y = jax.vmap(lambda v: standardizer.forward(stats, v))(values)
    back = jax.vmap(lambda y: standardizer.inverse(stats, y))(y)
    assert np.all(np.isfinite(y))
    assert y.shape == values.shape
    # Digits are lost where one value dwarfs the others.
    slack = 1e-5 * np.max(np.abs(values)) if kind == "zscore" else 1e-5
    np.testing.assert_allclose(back, values, rtol=1e-3, atol=max(slack, 1e-3))


@pytest.mark.parametrize("kind", ["zscore", "robust"])
@pytest.mark.parametrize(
    "name",
    [
        "normal",
        "heavy_tails",
        "lognormal",
        "decades",
        "counts",
        "tiny_spread",
        "scalar",
    ],
)
def test_mean_and_sd_after_forward(kind, name):
    values, stats = fit(kind, DATA[name])
    y = jax.vmap(lambda v: KINDS[kind].forward(stats, v))(values)
    np.testing.assert_allclose(np.mean(y, axis=0), 0.0, atol=2e-3)
    np.testing.assert_allclose(np.std(y, axis=0), 1.0, rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["normal", "lognormal", "counts", "image", "constant"])
def test_log_det_is_that_of_the_jacobian(kind, name):
    values, stats = fit(kind, DATA[name])
    standardizer = KINDS[kind]
    shape = values.shape[1:]

    def flat(v):
        return jnp.ravel(standardizer.forward(stats, v.reshape(shape)))

    for row in (0, 7, len(values) - 1):
        jacobian = jax.jacfwd(flat)(jnp.ravel(values[row]))
        np.testing.assert_allclose(
            standardizer.log_det(stats, values[row]),
            jnp.linalg.slogdet(jacobian)[1],
            rtol=1e-4,
            atol=1e-4,
        )


def test_log_det_far_out_is_finite():
    _, stats = fit("robust", DATA["one_outlier"])
    far = robust().log_det(stats, 1e6)
    # The tail is logarithmic, so the slope falls like 1 / |v|.
    for value in (1e12, 1e25, -1e30):
        expected = far - np.log(abs(value) / 1e6)
        np.testing.assert_allclose(robust().log_det(stats, value), expected, rtol=1e-4)
        assert np.isfinite(jax.grad(lambda v: robust().forward(stats, v))(value))


def test_robust_keeps_the_bulk_apart_where_zscore_does_not():
    # The claim of the module: one row of 1e6 among [0, 1].
    values, stats = fit("robust", DATA["one_outlier"])
    y = jax.vmap(lambda v: robust().forward(stats, v))(values)
    assert np.ptp(y[:-1]) > 0.1
    assert np.abs(y[-1]) < 30.0
    _, stats = fit("zscore", DATA["one_outlier"])
    y = jax.vmap(lambda v: zscore().forward(stats, v))(values)
    assert np.ptp(y[:-1]) < 1e-4


def test_sparse_counts_survive_an_outlier():
    # The middle half is constant, so quartiles say nothing about the scale.
    counts = np.concatenate([np.zeros(9_000), RNG.integers(1, 4, 999), [1e6]])
    _, stats = fit("robust", counts)
    y = [float(robust().forward(stats, v)) for v in (0.0, 1.0, 2.0, 1e6)]
    assert y[1] - y[0] > 0.05
    assert y[2] - y[1] > 0.05
    assert y[3] < 100.0


def test_robust_is_near_linear_in_the_bulk():
    values, stats = fit("robust", RNG.normal(3.0, 5.0, 5_000))
    inner = np.sort(np.asarray(values))[500:-500]
    y = jax.vmap(lambda v: robust().forward(stats, v))(jnp.asarray(inner))
    assert np.corrcoef(inner, y)[0, 1] > 0.999
    assert np.all(np.diff(y) >= 0)


@pytest.mark.parametrize(
    ("draw", "by_ratio"),
    [
        (lambda rng: rng.lognormal(2.0, 3.0, 5_000), True),
        (lambda rng: np.append(rng.lognormal(2.0, 3.0, 5_000), 1e25), True),
        (lambda rng: rng.lognormal(2.0, 0.2, 5_000), False),
        (lambda rng: rng.exponential(1.0, 5_000), True),
        (lambda rng: rng.uniform(0.0, 1.0, 5_000), False),
        (lambda rng: rng.normal(100.0, 1.0, 5_000), False),
        (lambda rng: np.append(rng.normal(100.0, 1.0, 5_000), 1e6), False),
        (lambda rng: rng.standard_cauchy(5_000), False),
        (lambda rng: -rng.lognormal(2.0, 3.0, 5_000), False),
        (lambda rng: np.append(rng.lognormal(2.0, 3.0, 5_000), 0.0), False),
    ],
)
def test_positive_elements_of_many_sizes_are_told_apart_by_ratios(draw, by_ratio):
    for seed in range(3):
        values = draw(np.random.default_rng(seed))
        _, stats = fit("robust", values)
        low, high = np.quantile(values, [0.02, 0.98])
        places = jnp.array([low, 2.0 * low, high, 2.0 * high])
        y = jax.vmap(lambda v, stats=stats: robust().forward(stats, v))(places)
        # Twice as much is as far everywhere: of a normal of 100 it is not, by 1.26.
        assert np.isclose(y[1] - y[0], y[3] - y[2], rtol=0.15) == by_ratio


def test_weights_decide_whether_ratios_matter():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.lognormal(0.0, 3.0, 1_000), rng.normal(9.0, 1.0, 1_000)]
    )
    first = np.repeat([1.0, 0.0], 1_000)
    for weight in (first, 1.0 - first):
        _, alone = fit("robust", values[weight > 0])
        _, weighted = fit("robust", values, weight)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(weighted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_sizes_of_all_decades_are_finite_and_inverted():
    values, stats = fit("robust", DATA["decades"])
    y = jax.vmap(lambda v: robust().forward(stats, v))(values)
    back = jax.vmap(lambda y: robust().inverse(stats, y))(y)
    np.testing.assert_allclose(back, values, rtol=1e-3)
    for value in (0.0, -1.0, -1e30, 1e-38, 1e38):
        assert abs(robust().forward(stats, value)) < 20.0
        assert np.isfinite(robust().log_det(stats, value))
    for value in (np.inf, -np.inf):  # what is no number is not made one
        assert robust().forward(stats, value) == value
    assert np.isnan(robust().forward(stats, np.nan))


@pytest.mark.parametrize("kind", ["zscore", "robust"])
@pytest.mark.parametrize("name", ["normal", "counts", "lognormal"])
def test_rows_of_weight_zero_have_no_effect(kind, name):
    values, stats = fit(kind, DATA[name])
    junk = np.full((40, *values.shape[1:]), np.nan)
    junk[:10], junk[10:20], junk[20:30] = np.inf, -np.inf, 1e30
    mixed = np.concatenate([junk[:15], values, junk[15:]])
    weight = np.concatenate([np.zeros(15), np.ones(len(values)), np.zeros(25)])
    _, padded = fit(kind, mixed, weight)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "robust"])
def test_weights_count_rows(kind):
    values = RNG.normal(size=(30, 2))
    counts = RNG.integers(0, 4, 30)
    _, weighted = fit(kind, values, counts.astype(np.float32))
    _, repeated = fit(kind, np.repeat(values, counts, axis=0))
    for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "robust"])
def test_scale_of_the_weights_does_not_matter(kind):
    values = DATA["normal"]
    _, one = fit(kind, values)
    # Powers of two, so that ties of cumulative weights stay ties.
    for factor in (2.0**-20, 2.0**20):
        _, other = fit(kind, values, np.full(len(values), factor, np.float32))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["zscore", "robust"])
def test_order_of_rows_does_not_matter(kind):
    values = DATA["lognormal"]
    _, one = fit(kind, values)
    _, other = fit(kind, RNG.permutation(values))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "robust"])
def test_no_valid_rows_gives_finite_stats(kind):
    _, stats = fit(kind, np.full((5, 2), np.nan), np.zeros(5))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(stats))


@pytest.mark.parametrize("kind", KINDS)
def test_pytrees(kind):
    standardizer = KINDS[kind]
    values = {
        "series": jnp.asarray(RNG.normal(size=(40, 5))),
        "rest": (jnp.asarray(RNG.normal(size=40)), [jnp.ones((40, 2, 2))]),
    }
    stats = standardizer.fit(values, jnp.ones(40))
    one = jax.tree.map(lambda leaf: leaf[3], values)
    y = standardizer.forward(stats, one)
    assert jax.tree.structure(y) == jax.tree.structure(one)
    back = standardizer.inverse(stats, y)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    total = standardizer.log_det(stats, one)
    assert np.shape(total) == ()
    _, series_stats = fit(kind, values["series"])
    alone = standardizer.log_det(series_stats, one["series"])
    if kind == "zscore":  # the other leaves add their own
        rest = np.log(np.std(values["rest"][0]))
        np.testing.assert_allclose(total, alone - rest, rtol=1e-4)


def test_zscore_values():
    # sd of (1, 3, 8) with weights (1, 1, 2) is sqrt(9.5), its mean is 5.
    _, stats = fit("zscore", np.array([1.0, 3.0, 8.0]), np.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(zscore().forward(stats, 8.0), 3.0 / np.sqrt(9.5), 1e-6)
    np.testing.assert_allclose(zscore().log_det(stats, 8.0), -np.log(9.5) / 2, 1e-6)


def test_shared_stats_under_vmap_equal_a_loop():
    values, stats = fit("robust", DATA["normal"])
    mapped = jax.vmap(robust().forward, in_axes=(None, 0))(stats, values[:5])
    looped = jnp.stack([robust().forward(stats, v) for v in values[:5]])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6)
