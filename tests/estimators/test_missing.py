"""Missing entries: what is hidden, how it is marked, and the posterior without it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import densities, networks

PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))
NUM_ENTRIES = 4


def simulator(key, theta):
    return 100.0 + 10.0 * (theta + jax.random.normal(key, (NUM_ENTRIES,)))


def make_npe(**options):
    return sj.make_npe(
        PRIOR,
        density=densities.mdn(num_components=1),
        standardizer=networks.missing(networks.robust()),
        **options,
    )


@pytest.fixture(scope="module")
def sims():
    return sj.simulate(jax.random.key(0), PRIOR, simulator, 4_000, progress=False)


def seen_by_loss(estimator, sims):
    """The batch that the inner estimator's loss is given."""
    seen = []

    def loss(params, key, batch):
        seen.append(batch)
        return jnp.zeros(())

    inner = estimator._replace(loss=loss)
    return inner, seen


def test_the_share_of_hidden_entries_is_uniform(sims):
    inner, seen = seen_by_loss(make_npe(), sims)
    outer = sj.with_missing(inner, max_rate=0.6)
    outer.loss(None, jax.random.key(1), sims)
    hidden = np.isnan(seen[0].x)
    assert abs(hidden.mean() - 0.3) < 0.02
    # Rates differ from row to row: Var of a row's mean is E[p(1 - p)] / n + Var p.
    expected = (0.3 - 0.12) / NUM_ENTRIES + 0.6**2 / 12
    assert abs(hidden.mean(axis=1).var() / expected - 1.0) < 0.1
    np.testing.assert_array_equal(
        np.where(hidden, 0.0, seen[0].x), np.where(hidden, 0.0, sims.x)
    )


def test_another_way_of_hiding(sims):
    inner, seen = seen_by_loss(make_npe(), sims)
    outer = sj.with_missing(inner, hide=lambda key, x: x.at[1].set(jnp.nan))
    outer.loss(None, jax.random.key(1), sims)
    assert np.isnan(seen[0].x).mean(axis=0).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_statistics_are_those_of_incomplete_data(sims):
    # A regression on complete data leaves residuals too small for what is missing.
    inner, seen = make_npe(), []

    def init(key, sims):
        seen.append(sims)
        return inner.init(key, sims)

    outer = sj.with_missing(inner._replace(init=init), max_rate=0.6)
    params = outer.init(jax.random.key(1), sims)
    assert abs(np.isnan(seen[0].x).mean() - 0.3) < 0.02
    assert np.all(seen[0].weight == 1.0)
    complete = inner.init(jax.random.key(1), sims).stats.theta.factor
    assert params.stats.theta.factor > complete


def test_marks_and_inverse():
    marked = networks.missing(networks.zscore())
    values = jnp.array([[1.0, 5.0], [jnp.nan, 7.0], [3.0, jnp.nan], [jnp.nan, 9.0]])
    stats = marked.fit(values, jnp.array([1.0, 1.0, 1.0, 0.0]))
    pair = marked.forward(stats, jnp.array([3.0, jnp.nan]))
    np.testing.assert_allclose(pair, [[1.0, 1.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(marked.inverse(stats, pair), [3.0, np.nan])
    with pytest.raises(TypeError, match="no density"):
        marked.log_det(stats, values[0])


def test_a_grid_of_missing_entries_shares_its_statistics():
    marked = networks.missing(networks.pooled(networks.zscore()))
    values = jnp.array([[1.0, 5.0], [jnp.nan, 3.0]])
    stats = marked.fit(values, jnp.ones(2))
    pair = marked.forward(stats, jnp.array([3.0, 5.0]))
    np.testing.assert_allclose(pair[:, 0], [0.0, 1.5**0.5], atol=1e-5)


@pytest.mark.slow
def test_posterior_given_what_is_there_is_the_exact_one(sims):
    npe = sj.with_missing(make_npe())
    params, _ = sj.train(jax.random.key(1), npe, sims, progress=False)
    full = np.array([0.2, 1.5, -0.4, 0.9])
    for shown in ([0], [0, 2], [0, 1, 2, 3]):
        x = np.full(NUM_ENTRIES, np.nan)
        x[shown] = 100.0 + 10.0 * full[shown]
        draws = sj.infer(npe, params, x).sample(jax.random.key(len(shown)), 5_000)
        size = len(shown)
        sd = (size + 1.0) ** -0.5
        assert abs(np.mean(draws) - full[shown].sum() / (size + 1.0)) < 0.25 * sd
        assert abs(np.std(draws) / sd - 1.0) < 0.15


def test_only_missing_entries_are_allowed(sims):
    plain, npe = make_npe(), sj.with_missing(make_npe())
    x = np.array([100.0, np.nan, 90.0, 110.0])
    params = plain.init(jax.random.key(1), sims)
    with pytest.raises(ValueError, match="1 non-finite value.*with_missing"):
        sj.infer(plain, params, x)
    params = npe.init(jax.random.key(1), sims)
    sj.infer(npe, params, x)
    with pytest.raises(ValueError, match="1 non-finite value"):
        sj.infer(npe, params, np.where(np.isnan(x), np.inf, x))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: sj.with_missing(sj.make_nle(PRIOR)),
            TypeError,
            "make_npe or make_nre",
        ),
        (lambda: sj.with_missing(make_npe), TypeError, "estimator must be of type"),
        (
            lambda: sj.with_missing(make_npe(), max_rate=1.5),
            ValueError,
            "max_rate must",
        ),
        (lambda: networks.missing(networks.robust), TypeError, "standardizer must be"),
        (lambda: networks.pooled(networks.robust), TypeError, "standardizer must be"),
        (
            lambda: networks.pooled(networks.robust(), num_axes=0),
            ValueError,
            "num_axes must be at least 1",
        ),
    ],
)
def test_bad_settings_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
