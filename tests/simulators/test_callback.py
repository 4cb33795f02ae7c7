"""Python simulators inside compiled programs."""

import concurrent.futures
import os

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax.simulators import in_workers

PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


def noisy(rng, theta):
    return {"sum": theta + rng.normal(), "pair": theta + rng.normal(size=2)}


LIKE = {"sum": 0.0, "pair": np.zeros(2)}


def test_draws_do_not_depend_on_workers_or_nesting():
    keys = jax.random.split(jax.random.key(0), 6).reshape(2, 3)
    theta = jnp.arange(6.0).reshape(2, 3)
    found = []
    for num_workers in (1, 3):
        with concurrent.futures.ThreadPoolExecutor(num_workers) as executor:
            simulator = sj.python_simulator(noisy)
            with in_workers(simulator, LIKE, executor=executor) as simulate:
                run = jax.jit(jax.vmap(jax.vmap(simulate)))
                found.append(jax.device_get(run(jax.random.clone(keys), theta)))
    np.testing.assert_array_equal(found[0]["pair"], found[1]["pair"])
    assert found[0]["pair"].shape == (2, 3, 2)
    assert len(np.unique(found[0]["sum"] - theta)) == 6


def test_batches_get_whole_batches():
    def batch(rng, theta):
        assert theta.shape == (4,)
        return 2.0 * theta

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        simulator = sj.python_simulator(batch, batch_size=4)
        with in_workers(simulator, 0.0, executor=executor) as simulate:
            keys = jax.random.split(jax.random.key(0), 6)
            x = jax.jit(jax.vmap(simulate))(keys, jnp.arange(6.0))
    np.testing.assert_array_equal(x, 2.0 * np.arange(6.0))


def test_draws_that_fail_are_nan():
    def fails(rng, theta):
        if theta > 2.5:
            os._exit(1)
        if theta > 1.5:
            raise ArithmeticError("no")
        return np.zeros(3) if theta > 0.5 else float(theta)

    with in_workers(sj.python_simulator(fails), 0.0) as simulate:
        keys = jax.random.split(jax.random.key(0), 4)
        x = np.asarray(jax.jit(jax.vmap(simulate))(keys, jnp.arange(4.0)))
    assert x[0] == 0.0
    assert np.all(np.isnan(x[1:]))


def test_smc_abc_of_a_python_simulator():
    python = sj.python_simulator(lambda rng, theta: theta + rng.normal())
    sims = sj.simulate(jax.random.key(0), PRIOR, python, 200, progress=False)
    with in_workers(python, 0.0) as simulator:
        abc = sj.make_smc_abc(
            PRIOR, simulator, num_simulations=10_000, num_particles=500
        )
        params = abc.init(jax.random.key(1), sims)
        draw = jax.jit(abc.sample, static_argnames="num_samples")
        theta, info = draw(params, jax.random.key(2), 1.5, num_samples=2_000)
        theta = np.asarray(theta)
    assert int(info.num_simulations) == 10_000
    assert abs(theta.mean() - 0.75) < 0.15
    assert abs(theta.std() - 0.5**0.5) < 0.15


def test_other_simulators_are_refused():
    with pytest.raises(TypeError, match="python_simulator"):
        with in_workers(lambda key, theta: theta, 0.0):
            pass
