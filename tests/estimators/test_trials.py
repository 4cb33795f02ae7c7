"""Repeated trials: masks, padding, and the sum over any estimator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import networks
from sbijax.base import SolverInfo
from sbijax.samplers import annealed_langevin, importance_resampling

PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


def make_sims():
    theta, noise = jax.random.normal(jax.random.key(0), (2, 300))
    return sj.make_simulations(theta, {"value": theta + noise})


def trained(make):
    estimator = make(PRIOR)
    return estimator, estimator.init(jax.random.key(1), make_sims())


METHODS = {
    "npe": sj.make_npe,
    "nle": sj.make_nle,
    "nre": sj.make_nre,
    "npse": sj.make_npse,
}


@pytest.fixture(scope="module", params=METHODS, ids=str)
def method(request):
    # Untrained: theta and x are jointly Gaussian, which is what they start from.
    return trained(METHODS[request.param])


def test_the_sum_is_the_exact_posterior(method):
    estimator, params = method
    xs = np.array([0.4, 1.0, -0.2, 0.9])
    log_prob = jax.jit(jax.vmap(sj.iid(estimator, PRIOR).log_prob, (None, 0, None)))
    theta = jnp.linspace(-1.5, 2.5, 201)
    found = np.asarray(log_prob(params, theta, sj.make_trials({"value": xs})), float)
    weight = np.exp(found - found.max())
    weight /= weight.sum()
    mean = np.sum(weight * theta)
    sd = np.sqrt(np.sum(weight * (theta - mean) ** 2))
    # Slope and scale were fitted to 300 rows: each is off by about .06.
    assert abs(mean - xs.sum() / 5.0) < 0.2
    assert abs(sd * 5.0**0.5 - 1.0) < 0.2


def test_hidden_trials_have_no_effect(method):
    estimator, params = method
    log_prob = jax.jit(sj.iid(estimator, PRIOR).log_prob)
    xs = np.array([0.4, 1.0, -0.2])
    plain = log_prob(params, 0.3, sj.make_trials({"value": xs}))
    padded = sj.make_trials({"value": xs}, num_padded=7)
    np.testing.assert_allclose(log_prob(params, 0.3, padded), plain, rtol=1e-5)
    junk = padded.x["value"].at[3:].set(jnp.nan)
    hidden = sj.Trials({"value": junk}, padded.mask)
    np.testing.assert_allclose(log_prob(params, 0.3, hidden), plain, rtol=1e-5)
    grad = jax.grad(sj.iid(estimator, PRIOR).log_prob, argnums=1)
    assert np.isfinite(grad(params, 0.3, hidden))


def test_another_number_of_trials_compiles_nothing():
    estimator, params = trained(sj.make_nle)
    log_prob = jax.jit(chex.assert_max_traces(sj.iid(estimator, PRIOR).log_prob, n=1))
    for num in (1, 4, 9):
        xs = {"value": np.linspace(-1.0, 1.0, num)}
        log_prob(params, 0.3, sj.make_trials(xs, num_padded=9))


def test_draws_and_their_info():
    estimator, params = trained(sj.make_nle)
    repeated = sj.iid(estimator, PRIOR, sampler=importance_resampling())
    xs = np.array([0.4, 50.0, -0.2])
    trials = sj.make_trials({"value": xs}, num_padded=5)
    _, info = repeated.sample(params, jax.random.key(2), trials, num_samples=10)
    assert (int(info.num_outside), int(info.num_entries)) == (1, 3)
    trials = sj.make_trials({"value": np.array([0.4, 0.6])})
    draws = sj.infer(repeated, params, trials).sample(jax.random.key(3), 4000)
    assert draws.shape == (4000,)
    assert abs(float(jnp.mean(draws)) - 1.0 / 3.0) < 0.2


@pytest.mark.parametrize("num", [1, 5, 40])
def test_composed_scores_give_the_exact_posterior(num):
    prior = sj.make_prior(dist.Normal(jnp.zeros(2), jnp.array([1.0, 2.0])))
    key, noise_key = jax.random.split(jax.random.key(0))
    theta = jax.random.normal(key, (5_000, 2)) * jnp.array([1.0, 2.0])
    noise = jax.random.normal(noise_key, (5_000, 2)) * jnp.array([0.5, 3.0])
    npse = sj.make_npse(prior, network=networks.field_resnet(hidden_size=4))
    params = npse.init(jax.random.key(1), sj.make_simulations(theta, theta + noise))
    rng = np.random.default_rng(num)
    xs = rng.normal([0.5, -1.0], [0.5, 3.0], (num, 2))
    posterior = sj.infer(sj.iid(npse, prior), params, sj.make_trials(xs))
    draws = np.asarray(posterior.sample(jax.random.key(2), 8_000), float)
    precision = 1.0 / np.array([1.0, 4.0]) + num / np.array([0.25, 9.0])
    mean = xs.sum(axis=0) / np.array([0.25, 9.0]) / precision
    # The regression on 5,000 rows is off by 1.4 % of a standard deviation per trial.
    away = np.abs(draws.mean(axis=0) - mean) * precision**0.5
    assert np.all(away < 0.05 + 0.04 * num**0.5)
    np.testing.assert_allclose(draws.std(axis=0) * precision**0.5, 1.0, atol=0.06)


def test_score_of_a_normal_through_the_whole_schedule():
    npse, params = trained(sj.make_npse)
    xs = jnp.array([0.4, -1.3, 2.0])
    score = npse.score_of_trials(params, sj.make_trials({"value": xs}, num_padded=5))
    linear = params.stats.theta
    # Untrained, the posterior of one trial is N(shift, 1) in these coordinates.
    standardised = jax.vmap(
        lambda x: networks.robust().forward(params.stats.x["scale"], {"value": x})
    )(xs)["value"]
    shifts = (linear.inverse @ linear.slope.T @ standardised[None])[0]
    for noise in np.geomspace(1e-3, 50.0, 12):
        for w in (-2.0, 0.3, 4.0):
            expected = np.sum(shifts - w) / (1.0 + noise**2)
            found = score(jnp.array([w]), jnp.asarray(noise))
            np.testing.assert_allclose(found, [expected], rtol=1e-3, atol=1e-5)


def test_composed_scores_ignore_hidden_trials_and_report():
    npse, params = trained(sj.make_npse)
    repeated = sj.iid(npse, PRIOR, sampler=annealed_langevin(num_levels=8))
    xs = np.array([0.4, 50.0, -0.2])
    key = jax.random.key(2)
    plain, info = repeated.sample(
        params, key, sj.make_trials({"value": xs}), num_samples=9
    )
    assert isinstance(info, SolverInfo)
    assert (int(info.num_outside), int(info.num_entries)) == (1, 3)
    assert (int(info.num_steps), int(info.num_invalid)) == (24, 0)
    padded = sj.make_trials({"value": xs}, num_padded=6)
    padded = padded._replace(x={"value": padded.x["value"].at[3:].set(jnp.nan)})
    again = jax.random.clone(key)
    hidden, _ = repeated.sample(params, again, padded, num_samples=9)
    np.testing.assert_allclose(hidden, plain, rtol=1e-4, atol=1e-4)


def test_densities_of_a_diffusion_serve_other_samplers():
    npse, params = trained(sj.make_npse)
    repeated = sj.iid(npse, PRIOR, sampler=importance_resampling())
    trials = sj.make_trials({"value": np.array([0.4, 0.6])})
    _, info = repeated.sample(params, jax.random.key(3), trials, num_samples=10)
    assert isinstance(info, sj.ChainInfo)
    with pytest.raises(TypeError, match="sampler must be a sampler"):
        sj.iid(sj.make_npe(PRIOR), PRIOR, sampler=annealed_langevin())


def test_bad_trials_are_refused():
    estimator, params = trained(sj.make_nle)
    repeated = sj.iid(estimator, PRIOR)
    hidden = sj.Trials({"value": jnp.zeros(3)}, jnp.zeros(3, bool))
    with pytest.raises(ValueError, match="hides all 3 trials"):
        sj.infer(repeated, params, hidden)
    with pytest.raises(ValueError, match="one trial has another shape"):
        sj.infer(repeated, params, sj.make_trials({"value": jnp.zeros((3, 2))}))
    with pytest.raises(ValueError, match="one trial has another structure"):
        sj.infer(repeated, params, sj.make_trials(jnp.zeros(3)))
    with pytest.raises(ValueError, match="one entry of the mask"):
        sj.infer(repeated, params, sj.Trials({"value": jnp.zeros(3)}, jnp.ones(2)))
    with pytest.raises(ValueError, match="non-finite"):
        sj.infer(repeated, params, sj.make_trials({"value": jnp.array([1.0, jnp.nan])}))
    with pytest.raises(ValueError, match="make_trials"):
        sj.infer(repeated, params, {"value": jnp.zeros(3)})
    with pytest.raises(TypeError, match="x must be Trials"):
        repeated.log_prob(params, 0.3, {"value": jnp.array(0.2)})
    with pytest.raises(ValueError, match="one row per trial"):
        sj.make_trials({"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(ValueError, match="more than num_padded=2"):
        sj.make_trials(np.zeros(3), num_padded=2)
    with pytest.raises(ValueError, match="0 rows"):
        sj.make_trials(np.zeros((0, 2)))


def test_an_estimator_without_a_density_is_refused():
    estimator, _ = trained(sj.make_npe)
    with pytest.raises(TypeError, match="no"):
        sj.iid(estimator._replace(log_prob=None), PRIOR)
