"""Mixed NLE on choices and times of drift diffusion, whose density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sbijax as sj
from sbijax.estimators._unnormalised import make_target
from sbijax.samplers import tempered_smc
from sbijax.simulators.drift_diffusion import _probability_of_upper

pytestmark = pytest.mark.slow

TASK = sj.simulators.drift_diffusion()
NUM_TRIALS = 50
NUM_DRAWS = 2_000


def simulate(seed, num):
    key = jax.random.key(seed)
    return sj.simulate(key, TASK.prior, TASK.simulator, num, progress=False)


def train(seed, nle):
    key, sims = jax.random.key(seed), simulate(0, 20_000)
    return sj.train(key, nle, sims, batch_size=400, progress=False)[0]


@pytest.fixture(scope="module")
def trained():
    nle = sj.make_nle(TASK.prior, num_categories=TASK.num_categories)
    return nle, train(1, nle)


@pytest.fixture(scope="module")
def held_out():
    return simulate(2, 10_000)


def test_likelihood_of_held_out_data(trained, held_out):
    nle, params = trained
    learned = jax.jit(jax.vmap(nle.log_likelihood, (None, 0, 0)))
    exact = jax.jit(jax.vmap(TASK.log_likelihood))
    difference = np.asarray(
        exact(held_out.theta, held_out.x) - learned(params, held_out.theta, held_out.x),
        float,
    )
    error = difference.std() / len(difference) ** 0.5
    assert -3 * error < difference.mean() < 0.15


def test_probability_of_a_choice(trained, held_out):
    nle, params = trained
    theta = jax.tree.map(lambda leaf: leaf[:300], held_out.theta)
    decision = 8.0 * jnp.linspace(0.0, 1.0, 801)[1:] ** 2

    def learned(theta):
        def density(time):
            x = {"choice": 1.0, "time": theta["delay"] + time}
            return jnp.exp(nle.log_likelihood(params, theta, x))

        return jnp.trapezoid(jax.vmap(density)(decision), decision)

    found = np.asarray(jax.jit(jax.vmap(learned))(theta))
    exact = np.asarray(jax.vmap(_probability_of_upper)(theta))
    assert exact.std() > 0.2
    # Training from five seeds leaves .027 to .035.
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.045


def test_posterior_of_many_trials(trained):
    """By the errors of two trainings, for those of one depend on rounding."""
    nle, params = trained
    theta = {"drift": 0.8, "boundary": 1.4, "bias": 0.45, "delay": 0.6}
    keys = jax.random.split(jax.random.key(3), NUM_TRIALS)
    xs = jax.vmap(TASK.simulator, (0, None))(keys, theta)
    trials = sj.make_trials(xs)
    iid = sj.iid(nle, TASK.prior)

    @jax.jit
    def draw(params):
        key = jax.random.key(4)
        return iid.sample(params, key, trials, num_samples=NUM_DRAWS)[0]

    draws = [draw(params), draw(train(2, nle))]
    exact = draw_exactly(jax.random.key(5), xs)
    for name in theta:
        mean, sd = np.mean(exact[name]), np.std(exact[name])
        off = np.array([np.mean(d[name]) - mean for d in draws]) / sd
        spread = np.array([np.std(d[name]) for d in draws]) / sd
        assert np.sqrt(np.mean(off**2)) < 0.6
        assert np.mean(np.abs(np.log(spread))) < -np.log(0.75)


@jax.jit
def draw_exactly(key, xs):
    """The posterior of the exact density."""

    def log_likelihood(theta, _):
        return jnp.sum(jax.vmap(TASK.log_likelihood, (None, 0))(theta, xs))

    target = make_target(TASK.prior, log_likelihood)
    z, _ = tempered_smc()(key, target, num_samples=NUM_DRAWS)
    return jax.vmap(TASK.prior.from_vector)(z.reshape(-1, TASK.prior.num_dims))
