"""Weights of the entries of x: what has to do with theta, and what has not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax.estimators._relevance import (
    fit_relevance,
    fit_relevance_beyond,
    weigh,
)

NUM_ROWS = 1_000


@pytest.fixture(scope="module")
def data():
    """Entries: a mean, a variance, a weak mean, 50 of noise, a constant."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(NUM_ROWS, 2))
    noise = rng.normal(size=(NUM_ROWS, 53))
    x = np.concatenate(
        [
            z[:, :1] + noise[:, :1],
            np.exp(0.5 * z[:, 1:]) * noise[:, 1:2],
            0.2 * z[:, 1:] + noise[:, 2:3],
            noise[:, 3:],
            np.ones((NUM_ROWS, 1)),
        ],
        axis=1,
    )
    return jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32)


def test_entries_are_weighed_by_what_they_tell_of_theta(data):
    x, z = data
    (relevance,) = fit_relevance(x, x, z, jnp.ones(NUM_ROWS))
    assert relevance.shape == (54,)
    assert np.all(relevance[:2] > 0.9)
    assert 0.5 < relevance[2] < 0.9
    # A chi-squared of 4 degrees is rarely above 12.5, in each of two ways.
    assert np.mean(relevance[3:53] > 0.035) < 0.1
    assert np.mean(relevance[3:53]) < 0.05
    assert relevance[53] == pytest.approx(0.03, rel=0.1)
    np.testing.assert_allclose(jnp.max(relevance), 1.0, rtol=1e-6)


def test_too_few_rows_tell_nothing(data):
    x, z = data
    (relevance,) = fit_relevance(x[:10], x[:10], z[:10], jnp.ones(10))
    np.testing.assert_allclose(relevance, 1.0, rtol=1e-6)


def test_rows_of_weight_zero_have_no_effect(data):
    x, z = data
    half = jnp.where(jnp.arange(NUM_ROWS) < 500, 1.0, 0.0)
    (kept,) = fit_relevance(x[:500], x[:500], z[:500], jnp.ones(500))
    (masked,) = fit_relevance(x, x, z, half)
    np.testing.assert_allclose(kept, masked, rtol=1e-3, atol=1e-3)


def test_only_plain_entries_are_scaled(data):
    x, z = data
    trials = sj.make_trials(np.ones((NUM_ROWS, 4)))
    mixed = {"entry": x[:, :3], "marked": x[:, :1], "set": trials}
    pairs = mixed | {"marked": jnp.stack([x[:, :1], jnp.ones((NUM_ROWS, 1))], -1)}
    relevance = fit_relevance(pairs, mixed, z, jnp.ones(NUM_ROWS))
    assert [jnp.shape(leaf) for leaf in relevance] == [(3,), (), ()]
    one = jax.tree.map(lambda leaf: leaf[0], pairs)
    scaled = weigh(one, relevance)
    np.testing.assert_allclose(scaled["entry"], one["entry"] * relevance[0])
    np.testing.assert_array_equal(scaled["marked"], one["marked"])
    np.testing.assert_array_equal(scaled["set"].x, one["set"].x)


def test_what_a_regression_predicts_leaves_entries_less_to_tell(data):
    x, z = data
    # The first entry tells z_0 by its mean, the second z_1 by its variance.
    slope = jnp.linalg.lstsq(x[:, :1], z)[0]
    predicted = x[:, :1] @ slope
    found = fit_relevance_beyond(x, x, z, jnp.ones(NUM_ROWS), predicted, z - predicted)
    entries, of_predicted = found
    assert entries.shape == (54,)
    assert entries[0] < 0.1  # all that it tells is predicted
    assert entries[1] > 0.9
    assert np.mean(entries[3:53] > 0.012) < 0.1
    assert of_predicted[0] > 0.9
    assert max(map(jnp.max, found)) == pytest.approx(1.0)


def test_where_nothing_is_predicted_entries_weigh_as_before(data):
    x, z = data
    nothing = jnp.zeros_like(z)
    weight = jnp.ones(NUM_ROWS)
    entries, of_nothing = fit_relevance_beyond(x, x, z, weight, nothing, z)
    (relevance,) = fit_relevance(x, x, z, weight)
    known = relevance > 0.1
    np.testing.assert_allclose(entries[known], relevance[known], rtol=1e-5)
    np.testing.assert_allclose(of_nothing, 0.01, rtol=0.1)
    few = jax.tree.map(lambda a: a[:10], (x, x, z, weight, nothing, z))
    for found in fit_relevance_beyond(*few):  # too few rows tell nothing
        np.testing.assert_allclose(found, 1.0, rtol=1e-6)


def simulate_sum(key, theta):
    """A hundred entries of which only the sum matters."""
    return theta + 10.0 * jax.random.normal(key, (100,))


def test_of_many_entries_the_sum_is_left():
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    npe = sj.make_npe(prior)
    sims = sj.simulate(jax.random.key(0), prior, simulate_sum, 3_000, progress=False)
    relevance = npe.init(jax.random.key(1), sims).stats.x["relevance_beyond"]
    entries, of_predicted = relevance
    assert np.mean(entries) < 0.05
    np.testing.assert_allclose(of_predicted, 1.0, rtol=1e-6)


def simulate(key, theta):
    """A value with an error that is known, among 20 entries of noise."""
    scale_key, key, noise_key = jax.random.split(key, 3)
    log_sd = jax.random.normal(scale_key) - 1.0
    value = theta + jnp.exp(log_sd) * jax.random.normal(key)
    noise = 3.0 * jax.random.normal(noise_key, (20,))
    return jnp.concatenate([jnp.stack([value, log_sd]), noise])


def test_an_entry_that_matters_only_beside_others_is_learned():
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    npe = sj.make_npe(prior, density=sj.densities.mdn(num_components=1))
    sims = sj.simulate(jax.random.key(0), prior, simulate, 5_000, progress=False)
    params, _ = sj.train(jax.random.key(1), npe, sims, progress=False)
    relevance = params.stats.x["relevance"][0]
    assert relevance[0] > 0.9
    assert relevance[1] < 0.2  # the error alone says nothing

    test = sj.simulate(jax.random.key(2), prior, simulate, 5_000, progress=False)
    nats = -jax.vmap(lambda t, x: npe.log_prob(params, t, x))(test.theta, test.x).mean()
    value, log_sd = test.x[:, 0], test.x[:, 1]
    precision = 1.0 + jnp.exp(-2.0 * log_sd)
    loc = value * jnp.exp(-2.0 * log_sd) / precision
    exact = -dist.Normal(loc, precision**-0.5).log_prob(test.theta).mean()
    blind = 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)  # of the prior
    assert exact < nats < exact + 0.1 * (blind - exact)
