"""Importance resampling, and where chains start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.samplers.importance import importance_resampling, start_positions
from tests.samplers.targets import (
    ALL,
    SCALE,
    gaussian_likelihood,
    index_of,
    pick,
    with_prior,
)

NUM_RUNS = 50


@pytest.fixture(scope="module")
def run_many():
    """Draws and infos of many runs on a target of `ALL`."""

    def draw(key, index):
        return importance_resampling()(key, pick(index), num_samples=1000)

    many = jax.jit(jax.vmap(draw, in_axes=(0, None)))

    def run(name):
        keys = jax.random.split(jax.random.key(1), NUM_RUNS)
        return many(keys, index_of(name))

    return run


def draw_from(log_likelihood, num_candidates, num_samples):
    sampler = importance_resampling(num_candidates=num_candidates)
    target = with_prior(log_likelihood)
    return jax.jit(lambda key: sampler(key, target, num_samples=num_samples))(
        jax.random.key(0)
    )


PROPER = ["gaussian", "banana", "two_modes", "half_normal", "half_nan"]


@pytest.mark.parametrize("name", PROPER)
def test_moments(run_many, name):
    z = np.asarray(run_many(name)[0], float)[:, 0]
    assert z.shape == (NUM_RUNS, 1000, 3)
    error = z - ALL[name].mean
    products = np.einsum("rsi,rsj->rij", error, error) / z.shape[1]
    for values, expected in (
        (error.mean(axis=1), np.zeros(3)),
        (products, ALL[name].covariance),
    ):
        sigma = values.std(axis=0, ddof=1) / NUM_RUNS**0.5
        assert np.all(np.abs(values.mean(axis=0) - expected) < 5 * sigma)
        assert np.all(sigma < 0.05 * (1.0 + np.abs(ALL[name].covariance).max()))


@pytest.mark.parametrize("name", PROPER)
def test_evidence_is_unbiased(run_many, name):
    _, info = run_many(name)
    ratio = np.exp(np.asarray(info.log_evidence, float) - ALL[name].log_evidence)
    error = ratio.std(ddof=1) / NUM_RUNS**0.5
    assert error < 0.02
    assert abs(ratio.mean() - 1.0) < 5 * error


def test_ess_predicts_the_spread_between_runs(run_many):
    _, info = run_many("gaussian")
    # Var(mean w) / (mean w)^2 = 1 / ESS - 1 / N: the evidence shows the ESS, with
    # a relative error of sqrt(2 / runs) for a variance.
    ess = float(np.mean(info.ess[:, 0]))
    assert 100 < ess < 1000
    spread = np.var(np.asarray(info.log_evidence, float), ddof=1)
    assert abs(spread / (1 / ess - 1e-4) - 1.0) < 4 * (2 / NUM_RUNS) ** 0.5


def test_the_info_of_good_weights(run_many):
    _, info = run_many("gaussian")
    assert np.all(info.pareto_k < 0.7)
    assert np.all(info.num_failed == 0)
    assert np.all(np.isnan(info.rhat))
    assert np.all(np.isnan(info.acceptance))
    assert info.ess.shape == (NUM_RUNS, 3)
    assert np.all(info.ess == info.ess[:, :1])


def test_few_effective_candidates_show():
    def narrow(z):
        return -0.5 * jnp.sum((z / 1e-3) ** 2)

    info = draw_from(narrow, 10_000, 100)[1]
    assert float(info.pareto_k) > 0.7
    assert float(info.ess[0]) < 3
    assert int(info.num_failed) == 0


def test_a_density_that_is_nowhere_fails_and_says_so(run_many):
    chains, info = run_many("nowhere")
    assert np.all(info.num_failed == 1)
    assert np.all(np.isneginf(info.log_evidence))
    assert np.all(np.isposinf(info.pareto_k))
    assert np.all(info.ess == 0)
    assert np.all(np.isfinite(chains))


def test_regions_without_density_have_no_weight(run_many):
    chains, _ = run_many("half_nan")
    assert np.all(chains[..., 0] > 0)


def test_a_single_weight_is_drawn_every_time():
    def first_only(z):
        return jnp.where(z[0] > 2.8 * SCALE, 0.0, jnp.nan)

    chains, info = draw_from(first_only, 1000, 500)
    z = np.asarray(chains[0, :, 0])
    assert np.all(z > 2.8 * SCALE)
    assert len(np.unique(z)) == round(float(info.ess[0]))


def test_a_flat_likelihood_returns_the_prior():
    chains, info = draw_from(lambda z: 0.0 * z[0] - 3.0, 1000, 1000)
    assert len(np.unique(chains[0, :, 0])) > 990  # each candidate once, but rounding
    np.testing.assert_allclose(info.ess, 1000, rtol=1e-3)
    np.testing.assert_allclose(info.log_evidence, -3.0, rtol=1e-4)
    assert float(info.pareto_k) < 0.7


def test_draws_are_in_random_order():
    chains, _ = draw_from(lambda z: jnp.log(jnp.abs(z[0])), 100, 4000)
    z = np.asarray(chains[0, :, 0], float)
    neighbours = np.corrcoef(z[1:], z[:-1])[0, 1]
    assert abs(neighbours) < 5 / len(z) ** 0.5


@pytest.mark.slow
def test_jit_vmap_and_loop_agree():
    sampler = importance_resampling(num_candidates=200)

    def draw(key, x):
        target = with_prior(gaussian_likelihood(x))
        return sampler(key, target, num_samples=20)

    xs = jnp.array([[1.0, -2.0, 0.0], [jnp.nan, 0.0, 0.0], [0.0, 1.0, 2.0]])
    keys = jax.random.split(jax.random.key(0), 3)
    chains, info = jax.jit(jax.vmap(draw))(keys, xs)
    assert info.num_failed.tolist() == [0, 1, 0]
    eager = draw(jax.random.clone(keys)[0], xs[0])
    one = jax.jit(draw)
    singles = [one(key, xs[i]) for i, key in enumerate(jax.random.clone(keys))]
    np.testing.assert_allclose(eager[0], singles[0][0], atol=1e-5)
    for i, (single, single_info) in enumerate(singles):
        np.testing.assert_allclose(chains[i], single, atol=1e-5)
        np.testing.assert_allclose(info.ess[i], single_info.ess, rtol=1e-4)


def test_starts_are_distinct_and_spread_over_modes():
    starts = jax.jit(lambda key: start_positions(key, pick(2), 20))(jax.random.key(0))
    assert starts.shape == (20, 3)
    assert len(np.unique(starts[:, 0])) == 20
    assert 0 < np.sum(starts[:, 0] > 0) < 20


def test_starts_without_replacement_follow_the_weights():
    # One start of many candidates is one draw of the posterior, here N(2, 2).
    target = with_prior(lambda z: -0.5 * jnp.sum((z - SCALE) ** 2) / SCALE**2)
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: start_positions(key, target, 1, 200)))
    z = np.asarray(draw(keys), float)[:, 0]
    sd = SCALE / 2**0.5
    # Self-normalised weights are off by at most about sd / N each.
    error = 5 * sd / len(z) ** 0.5 + sd / 200
    assert np.all(np.abs(z.mean(axis=0) - SCALE / 2) < error)


def test_starts_have_density_where_any_candidate_has():
    def rare(z):
        return jnp.where(z[0] > 2.5 * SCALE, 0.0, jnp.nan)

    starts = start_positions(jax.random.key(0), with_prior(rare), 50, 1000)
    assert np.all(starts[:, 0] > 2.5 * SCALE)
    assert 1 < len(np.unique(starts[:, 0])) < 50  # fewer candidates than starts
    nowhere = start_positions(jax.random.key(1), pick(index_of("nowhere")), 4)
    assert np.all(np.isfinite(nowhere))


def test_bad_configuration_is_refused():
    with pytest.raises(ValueError, match="num_candidates"):
        importance_resampling(num_candidates=24)
    with pytest.raises(TypeError, match="num_candidates"):
        importance_resampling(num_candidates=1e4)
    with pytest.raises(ValueError, match="num_samples"):
        importance_resampling()(jax.random.key(0), pick(0), num_samples=0)
    with pytest.raises(ValueError, match="num_positions"):
        start_positions(jax.random.key(0), pick(0), 0)
    with pytest.raises(ValueError, match="num_candidates must be at least 4"):
        start_positions(jax.random.key(0), pick(0), 4, 3)
