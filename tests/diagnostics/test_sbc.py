"""Calibration checks on posteriors that are right, too narrow, too wide, biased.

The model is theta ~ N(0, I) in three scalars and x = theta + noise, noise of sd
0.5, so the posterior is N(x / 1.25, 0.2 I).  The estimators stretch its sd by
`scale` and move its mean by `shift` posterior sd.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy import stats

from sbijax.base import Estimator, SbijaxWarning
from sbijax.data import make_simulations
from sbijax.diagnostics import (
    coverage,
    sbc,
    sbc_result,
    sbc_summary,
    sbc_table,
    uniformity_p_value,
)

NOISE = 0.5
POSTERIOR_SD = (1 / (1 + 1 / NOISE**2)) ** 0.5


def make_sims(seed, num_simulations=200):
    theta_key, noise_key = jax.random.split(jax.random.key(seed))
    theta = jax.random.normal(theta_key, (num_simulations, 3))
    x = theta + NOISE * jax.random.normal(noise_key, theta.shape)
    return make_simulations({"alpha": theta[:, 0], "beta": theta[:, 1:]}, x)


def mean_and_sd(params, x):
    mean = x / (1 + NOISE**2) + params["shift"] * POSTERIOR_SD
    return mean, POSTERIOR_SD * params["scale"]


def sample_fn(params, key, x, *, num_samples):
    mean, sd = mean_and_sd(params, x)
    theta = mean + sd * jax.random.normal(key, (num_samples, 3))
    return {"alpha": theta[:, 0], "beta": theta[:, 1:]}, None


def log_prob_fn(params, theta, x):
    mean, sd = mean_and_sd(params, x)
    vector = jnp.append(theta["alpha"], theta["beta"])
    return jnp.sum(norm.logpdf(vector, mean, sd))


ESTIMATOR = Estimator(init=None, loss=None, log_prob=log_prob_fn, sample=sample_fn)
EXACT = {"scale": 1.0, "shift": 0.0}


def run(seed, params=EXACT, num_simulations=200, num_samples=99, **options):
    return sbc(
        jax.random.key(seed),
        ESTIMATOR,
        params,
        make_sims(1000 + seed, num_simulations),
        num_samples=num_samples,
        **options,
    )


@pytest.fixture(scope="module")
def exact_results():
    return [run(seed) for seed in range(40)]


def test_exact_posterior_passes(exact_results):
    global_p = np.array([result.global_p_value for result in exact_results])
    assert global_p.min() > 0.05 / 40  # Bonferroni over the 40 runs
    assert np.mean(global_p < 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)


def test_p_values_on_the_exact_posterior_are_uniform(exact_results):
    p_values = np.stack([result.p_values for result in exact_results])
    assert p_values.shape == (40, 4)
    for column in p_values.T:
        assert stats.kstest(column, "uniform").pvalue > 0.01
    assert abs(np.mean(p_values) - 0.5) < 3 / np.sqrt(12 * p_values.size)


@pytest.mark.parametrize(
    ("params", "reading", "density"),
    [
        ({"scale": 1.5, "shift": 0.0}, "too wide", "underconfident"),
        ({"scale": 0.67, "shift": 0.0}, "too narrow", "overconfident"),
        ({"scale": 1.0, "shift": 0.5}, "too high", "overconfident"),
        ({"scale": 1.0, "shift": -0.5}, "too low", "overconfident"),
    ],
)
def test_wrong_posteriors_are_caught(params, reading, density):
    # With 200 replicates the rank's mean is 6.5 sd off at a bias of half an sd,
    # its variance 5 to 7 sd off at 1.5 times too wide or narrow.
    for seed in range(5):
        result = run(seed, params)
        assert np.all(result.p_values[:3] < 0.01)
        assert result.global_p_value < 1e-3
        readings = sbc_summary(result)["readings"]
        assert [readings[name] for name in result.names[:3]] == [reading] * 3
        assert readings["log_prob"] == density


def prior_sample_fn(params, key, x, *, num_samples):
    theta = jax.random.normal(key, (num_samples, 3))
    return {"alpha": theta[:, 0], "beta": theta[:, 1:]}, None


def distance(theta, x):
    return {"distance": jnp.abs(theta["alpha"] - x[0])}


def test_the_prior_is_caught_by_a_quantity_of_the_data_only():
    prior = ESTIMATOR._replace(sample=prior_sample_fn, log_prob=None)
    sims = make_sims(5)
    key = jax.random.key(5)
    result = sbc(key, prior, None, sims, num_samples=99, quantities=distance)
    assert result.names == ("alpha", "beta[0]", "beta[1]", "distance")
    assert result.num_parameters == 3
    assert result.p_values[:3].min() > 0.01
    assert result.p_values[3] < 1e-8
    assert coverage(result).names == ("alpha", "beta[0]", "beta[1]")
    assert "distance" in sbc_table(result)
    passed = run(5, quantities=distance)
    assert passed.names[3:] == ("log_prob", "distance")
    assert passed.p_values[4] > 0.01


def test_result_is_complete():
    result = run(0, num_simulations=50)
    assert result.names == ("alpha", "beta[0]", "beta[1]", "log_prob")
    assert result.ranks.shape == (50, 4)
    assert result.ranks.min() >= 0
    assert result.ranks.max() <= result.num_samples == 99
    assert (result.num_parameters, result.num_invalid) == (3, 0)
    expected = [uniformity_p_value(column, 99) for column in result.ranks.T]
    np.testing.assert_array_equal(result.p_values, expected)
    assert result.global_p_value == min(1.0, 4 * min(expected))
    assert len(result.band.points) == len(result.band.lower) == 99


def grid_sample_fn(params, key, x, *, num_samples):
    return jnp.arange(num_samples, dtype=float), None


def test_ranks_count_the_draws_below():
    grid = Estimator(init=None, loss=None, log_prob=None, sample=grid_sample_fn)
    theta = np.array([-1.0, 0.5, 3.5, 8.5, 100.0])
    sims = make_simulations(theta, np.zeros(5))
    result = sbc(jax.random.key(0), grid, None, sims, num_samples=10)
    assert result.names == ("theta",)
    assert result.ranks.ravel().tolist() == [0, 1, 4, 9, 10]


def test_ties_are_broken_at_random():
    grid = Estimator(init=None, loss=None, log_prob=None, sample=coin_sample_fn)
    theta = jax.random.bernoulli(jax.random.key(1), 0.3, (2000,))
    sims = make_simulations(theta, np.zeros(2000))
    result = sbc(jax.random.key(0), grid, None, sims, num_samples=20)
    assert result.p_values[0] > 0.01
    assert set(result.ranks.ravel()) == set(range(21))


def coin_sample_fn(params, key, x, *, num_samples):
    return jax.random.bernoulli(key, 0.3, (num_samples,)).astype(float), None


@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunks_have_no_effect(chunk_size):
    whole = run(3, num_simulations=30)
    chunked = run(3, num_simulations=30, chunk_size=chunk_size)
    np.testing.assert_array_equal(whole.ranks[:, :3], chunked.ranks[:, :3])


def test_rows_of_zero_weight_are_left_out():
    sims = make_sims(0, 40)
    theta = jax.tree.map(lambda a: jnp.concatenate([a, a * jnp.nan]), sims.theta)
    x = jnp.concatenate([sims.x, sims.x * jnp.nan])
    padded = make_simulations(theta, x)
    key = jax.random.key(0)
    plain = sbc(key, ESTIMATOR, EXACT, sims, num_samples=50)
    result = sbc(key, ESTIMATOR, EXACT, padded, num_samples=50)
    np.testing.assert_array_equal(plain.ranks, result.ranks)
    assert result.num_invalid == 0


def test_second_call_does_not_retrace():
    traces = []

    def counting_sample_fn(params, key, x, *, num_samples):
        traces.append(1)
        return sample_fn(params, key, x, num_samples=num_samples)

    estimator = ESTIMATOR._replace(sample=counting_sample_fn)
    for seed, scale in ((0, 1.0), (1, 2.0)):
        params = {"scale": scale, "shift": 0.0}
        sims = make_sims(seed, 20)
        sbc(jax.random.key(seed), estimator, params, sims, num_samples=10)
        if seed == 0:
            first = len(traces)
    assert len(traces) == first > 0


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        result = run(0, num_simulations=10, num_samples=5, chunk_size=3)
    assert result.ranks.shape == (10, 4)


def failing_sample_fn(params, key, x, *, num_samples):
    theta, info = sample_fn(EXACT, key, x, num_samples=num_samples)
    broken = jnp.where(x[0] > params, jnp.nan, theta["alpha"])
    return {**theta, "alpha": broken}, info


def test_replicates_with_broken_draws_are_left_out_with_a_warning():
    broken = ESTIMATOR._replace(sample=failing_sample_fn, log_prob=None)
    sims = make_sims(0, 40)
    num_broken = int(np.sum(np.asarray(sims.x)[:, 0] > 0.0))
    with pytest.warns(SbijaxWarning, match=f"{num_broken} of 40 replicates"):
        result = sbc(jax.random.key(0), broken, 0.0, sims, num_samples=20)
    assert result.num_invalid == num_broken
    assert len(result.ranks) == 40 - num_broken
    with pytest.raises(ValueError, match="every replicate"):
        sbc(jax.random.key(0), broken, -100.0, sims, num_samples=20)


def test_infinite_log_density_is_a_rank_and_not_a_fault():
    def bounded(params, theta, x):
        return jnp.where(theta["alpha"] > 0, 0.0, -jnp.inf)

    sims = make_sims(0, 40)
    estimator = ESTIMATOR._replace(log_prob=bounded)
    result = sbc(jax.random.key(0), estimator, EXACT, sims, num_samples=20)
    assert result.num_invalid == 0


def flat_sample_fn(params, key, x, *, num_samples):
    return jax.random.normal(key, (num_samples, 3)), None


def test_bad_input_is_refused():
    sims = make_sims(0, 10)
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="typed PRNG key"):
        sbc(0, ESTIMATOR, EXACT, sims)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        sbc(key, ESTIMATOR, EXACT, sims, num_samples=0)
    with pytest.raises(TypeError, match=r"chunk_size must be an integer, got 1.5"):
        sbc(key, ESTIMATOR, EXACT, sims, chunk_size=1.5)
    with pytest.raises(ValueError, match="no pair of non-zero weight"):
        sbc(key, ESTIMATOR, EXACT, sims._replace(weight=jnp.zeros(10)))
    with pytest.raises(ValueError, match="one common value"):
        sbc(key, ESTIMATOR, EXACT, sims._replace(weight=jnp.arange(10.0)))
    flat = Estimator(init=None, loss=None, log_prob=None, sample=flat_sample_fn)
    with pytest.raises(ValueError, match=r"returned float32\[5,3\], but theta"):
        sbc(key, flat, None, sims, num_samples=5)
    with pytest.raises(ValueError, match="dict of scalars"):
        sbc(key, ESTIMATOR, EXACT, sims, quantities=lambda theta, x: x)
    with pytest.raises(ValueError, match="one column for each of the 2 names"):
        sbc_result(np.zeros((5, 3)), ("a", "b"), 9)


def test_summary_and_table_name_the_parameters():
    import json

    result = run(0, {"scale": 0.5, "shift": 0.0})
    facts = sbc_summary(result, levels=(0.5, 0.9))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["num_replicates"] == 200
    assert set(facts["p_values"]) == set(result.names)
    expected = coverage(result, levels=(0.5, 0.9))
    assert list(facts["coverage"]) == list(expected.names)
    assert facts["coverage"]["beta[1]"]["0.9"] == expected.empirical[1, 2]
    lines = sbc_table(result).splitlines()
    assert len(lines) == 2 + len(result.names)
    assert all(n in line for n, line in zip(result.names, lines[2:], strict=True))
    assert lines[2].endswith("too narrow")
    assert lines[5].endswith("overconfident")
