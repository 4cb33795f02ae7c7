"""The contract of `sbijax.base` for methods that are not trained."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import abc

PRIOR = sj.make_prior(
    {"rate": dist.LogNormal(0.0, 0.5), "pair": dist.Uniform(-jnp.ones(2), jnp.ones(2))}
)


def simulator(key, theta):
    noise = jax.random.normal(key, (2,))
    return {"pair": theta["pair"] + 0.1 * noise, "rate": theta["rate"] * (1 + noise[0])}


METHODS = {
    "rejection": partial(sj.make_rejection_abc, num_simulations=2_000, quantile=0.1),
    "rejection_adjusted": partial(
        sj.make_rejection_abc,
        num_simulations=2_000,
        quantile=0.2,
        adjustment=abc.linear_adjustment(),
    ),
    "smc": partial(sj.make_smc_abc, num_simulations=2_000, num_particles=200),
    "smc_adaptive": partial(
        sj.make_smc_abc,
        num_simulations=2_000,
        num_particles=200,
        num_new=150,
        distance=abc.p_norm(1.0, adaptive=True),
        summary=abc.semi_automatic(),
        kernel=abc.normal_kernel(),
        adjustment=abc.nonlinear_adjustment(num_units=10),
    ),
}


@pytest.fixture(scope="module", params=METHODS, ids=str)
def member(request):
    """The estimator, its parameters, 40 simulations and the compiled `sample`."""
    estimator = METHODS[request.param](PRIOR, simulator)
    sims = sj.simulate(jax.random.key(0), PRIOR, simulator, 400, progress=False)
    params = jax.jit(estimator.init)(jax.random.key(1), sims)
    return (
        estimator,
        params,
        sims,
        jax.jit(estimator.sample, static_argnames="num_samples"),
    )


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def assert_close(a, b, **tolerance):
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, two, **tolerance)


def test_record(member):
    estimator, params, _, _ = member
    assert isinstance(estimator, sj.Estimator)
    assert estimator.loss is None
    assert estimator.log_prob is None
    names = list(inspect.signature(estimator.sample).parameters)
    assert names == ["params", "key", "x", "num_samples"]
    assert isinstance(params, sj.Params)
    assert params.stats._fields == sj.Stats._fields


def test_shapes_and_support(member):
    estimator, params, sims, sample = member
    theta, info = sample(params, jax.random.key(3), row(sims.x, 0), num_samples=50)
    assert jax.tree.structure(theta) == jax.tree.structure(sims.theta)
    for leaf, like in zip(
        jax.tree.leaves(theta), jax.tree.leaves(sims.theta), strict=True
    ):
        assert leaf.shape == (50, *like.shape[1:])
        assert leaf.dtype == like.dtype
    assert np.all(jax.vmap(PRIOR.log_prob)(theta) > -np.inf)
    assert isinstance(info, sj.AbcInfo)
    assert int(info.num_invalid) == 0
    assert int(info.num_entries) == 3
    np.testing.assert_allclose(np.sum(info.weight), 1.0, rtol=1e-5)
    posterior = sj.infer(estimator, params, row(sims.x, 0))
    assert posterior.log_prob is None
    with pytest.raises(TypeError, match="training-free"):
        sj.train(jax.random.key(0), estimator, sims)


def test_jit_equals_eager_and_vmap_equals_loop(member):
    estimator, params, sims, sample = member
    few = jax.tree.map(lambda leaf: leaf[:3], sims.x)
    keys = jax.random.split(jax.random.key(4), 3)

    def one(key, x):
        return estimator.sample(params, key, x, num_samples=20)[0]

    mapped = jax.jit(jax.vmap(one))(keys, few)
    for i, key in enumerate(jax.random.clone(keys)):
        single, _ = sample(params, key, row(few, i), num_samples=20)
        assert_close(row(mapped, i), single, rtol=1e-3, atol=1e-3)
    eager = one(jax.random.clone(keys)[0], row(few, 0))
    assert_close(row(mapped, 0), eager, rtol=1e-3, atol=1e-3)


def test_one_program_serves_all_observations(member):
    _, params, sims, sample = member
    before = sample._cache_size()
    for i in range(3):
        sample(params, jax.random.key(i), row(sims.x, i), num_samples=21)
    assert sample._cache_size() == before + 1


def test_rows_of_weight_zero_have_no_effect(member):
    estimator, params, sims, _ = member
    spoiled = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.full_like(leaf[:30], jnp.nan)]), sims
    )
    spoiled = spoiled._replace(
        weight=jnp.concatenate([sims.weight, jnp.zeros(30, sims.weight.dtype)])
    )
    again = jax.jit(estimator.init)(jax.random.key(1), spoiled)
    assert_close(again, params, rtol=1e-4, atol=1e-5)


def test_keys_are_consumed_once(member):
    estimator, params, sims, _ = member
    x = row(sims.x, 0)
    run = jax.jit(lambda key: estimator.sample(params, key, x, num_samples=3)[0])
    with jax.debug_key_reuse(True):
        key = jax.random.key(2)
        run(key)
        with pytest.raises(jax.errors.KeyReuseError):
            run(key)


def test_numpy_is_converted_and_other_structures_are_refused(member):
    estimator, params, sims, sample = member
    x = row(sims.x, 0)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), x)
    expected, _ = sample(params, jax.random.key(5), x, num_samples=5)
    found, _ = sample(params, jax.random.key(5), double, num_samples=5)
    assert_close(found, expected, rtol=1e-5)
    for bad in ({"other": x}, None, sims.x):
        with pytest.raises(ValueError, match="^x has another"):
            estimator.sample(params, jax.random.key(0), bad, num_samples=1)


def test_save_and_load_keep_every_bit(member, tmp_path):
    estimator, params, _, _ = member
    sj.save(tmp_path / "member.sbijax", estimator, params)
    again = sj.load(tmp_path / "member.sbijax", estimator)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
