"""MCMC on targets that are known in closed form."""

import functools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.base import Target
from sbijax.samplers.mcmc import hmc, mala, nuts, slice_sampling
from tests.samplers.targets import (
    ALL,
    assert_mean,
    assert_moments,
    gaussian_likelihood,
    index_of,
    pick,
    with_prior,
)

SAMPLERS = {
    "nuts": nuts(),
    "hmc": hmc(num_warmup=1000),
    "mala": mala(thin=10),
    "slice_sampling": slice_sampling(),
}
BY_GRADIENT = ["nuts", "hmc", "mala"]
FACTORIES = [nuts, hmc, mala, slice_sampling]
SHORT = {
    "nuts": nuts(num_warmup=30, max_num_doublings=3),
    "hmc": hmc(num_warmup=30),
    "slice_sampling": slice_sampling(num_warmup=30),
}


# Some trajectories end behind a wall however short they are.
BESIDE_A_WALL = {"hmc": hmc(target_acceptance=0.65)}
# Some chains on the banana have a hundredth as many draws that are independent.
NUM_DRAWS = 40_000


@functools.cache
def compiled(sampler):
    """One program for all targets."""

    def draw(key, index):
        return sampler(key, pick(index), num_samples=NUM_DRAWS)

    return jax.jit(draw)


@functools.cache
def run(name, target, seed=0):
    sampler = SAMPLERS[name]
    if target == "half_nan":
        sampler = BESIDE_A_WALL.get(name, sampler)
    return compiled(sampler)(jax.random.key(seed), index_of(target))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gaussian", "banana", "half_normal", "half_nan"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_moments(name, target):
    chains, info = run(name, target)
    assert_moments(chains, ALL[target])
    assert int(info.num_failed) == int(info.num_invalid) == 0
    assert np.all(info.rhat < 1.05)
    assert not np.isfinite(info.log_evidence)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_normal_at_its_bound(name):
    v = np.exp(np.asarray(run(name, "half_normal")[0], float)[..., 0])
    assert v.min() < 0.01
    assert_mean(v, np.sqrt(2 / np.pi))
    assert_mean(v**2, 1.0)
    # The mass next to the bound: P(v < 0.1) of a half-normal.
    assert_mean(v < 0.1, 0.0796557)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_info_is_laid_out_by_dimension_and_chain(name):
    chains, info = run(name, "gaussian")
    assert chains.shape == (4, NUM_DRAWS // 4, 3)
    assert info.rhat.shape == info.ess.shape == (3,)
    assert info.acceptance.shape == (4,)
    assert int(info.num_divergent) == 0
    assert int(info.num_entries) == int(info.num_outside) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_rhat_and_ess_are_those_of_arviz(name):
    for target in ("gaussian", "two_modes"):
        chains, info = run(name, target)
        for i, values in enumerate(np.moveaxis(np.asarray(chains, float), 2, 0)):
            rhat = float(az.rhat(values))
            ess = float(az.ess(values, method="bulk"))
            np.testing.assert_allclose(info.rhat[i], rhat, rtol=5e-3)
            np.testing.assert_allclose(info.ess[i], ess, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_separated_modes_raise_rhat(name):
    chains, info = run(name, "two_modes")
    side = np.asarray(chains)[..., 0] > 0
    # Chains start in both modes, and none crosses over.
    assert 0 < side.mean() < 1
    assert np.all(side == side[:, :1])
    assert float(info.rhat[0]) > 1.05
    assert np.all(info.rhat[1:] < 1.05)
    assert float(info.ess[0]) < 40


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_every_chain_has_its_own_step_size(name):
    chains, info = run(name, "two_widths")
    side = np.asarray(chains)[:, 0, 0] > 0
    assert 0 < side.sum() < 4
    # The modes differ tenfold in width.
    assert np.all((info.acceptance > 0.4) & (info.acceptance < 0.99))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_regions_without_density_are_not_entered(name):
    chains, info = run(name, "half_nan")
    assert np.all(np.isfinite(chains))
    assert np.all(chains[..., 0] > 0.0)
    # A trajectory that runs into the region is divergent.
    assert (int(info.num_divergent) > 0) == (name in BY_GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_density_that_is_nowhere_fails_and_says_so(name):
    chains, info = run(name, "nowhere")
    assert int(info.num_failed) == 4
    assert int(info.num_divergent) == 0
    assert np.all(np.isfinite(chains))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_chains_that_never_move_are_replaced(name):
    # Without a gradient at its start, a chain stays there.
    counts = []
    for seed in range(3):
        chains, info = run(name, "half_without_gradient", seed)
        counts.append(int(info.num_failed))
        assert np.all(chains[..., 0] > 0.0)
        distinct = len({chain.tobytes() for chain in np.asarray(chains)})
        assert distinct == 4 - counts[-1]
    assert 0 < sum(counts)
    assert max(counts) < 4


@pytest.mark.slow
def test_wrong_draws_would_not_pass():
    chains, _ = run("nuts", "gaussian")
    known = ALL["gaussian"]
    sd = np.sqrt(np.diag(known.covariance))
    with pytest.raises(AssertionError):
        assert_moments(chains + 0.2 * sd, known)
    with pytest.raises(AssertionError):
        assert_moments(known.mean + 1.2 * (chains - known.mean), known)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuts", "slice_sampling"])
def test_one_bad_observation_leaves_the_others_alone(name):
    def draw(key, x):
        target = with_prior(gaussian_likelihood(x))
        return SHORT[name](key, target, num_samples=40)

    # In double precision, where chains forget less of their rounding.
    with jax.enable_x64(True):
        xs = jnp.array([[1.0, -2.0, 0.0], [jnp.nan, 0.0, 0.0], [0.0, 1.0, 2.0]])
        keys = jax.random.split(jax.random.key(0), 3)
        chains, info = jax.jit(jax.vmap(draw))(keys, xs)
        assert info.num_failed.tolist() == [0, 4, 0]
        assert chains.dtype == jnp.float64
        one = jax.jit(draw)
        for i, key in enumerate(jax.random.clone(keys)):
            single, single_info = one(key, xs[i])
            np.testing.assert_allclose(chains[i], single, atol=1e-6)
            assert int(info.num_failed[i]) == int(single_info.num_failed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hmc", "slice_sampling"])
def test_jit_equals_eager(name):
    def draw(key):
        target = with_prior(gaussian_likelihood(jnp.ones(3)))
        return SHORT[name](key, target, num_samples=10)

    with jax.enable_x64(True):
        eager, eager_info = draw(jax.random.key(0))
        chains, info = jax.jit(draw)(jax.random.key(0))
    ess = np.asarray(info.ess)
    assert chains.shape == (4, 3, 3)  # an even selection of the draws
    np.testing.assert_allclose(chains, eager, atol=1e-6)
    np.testing.assert_allclose(ess, eager_info.ess, rtol=1e-3)
    assert np.all(ess > 20)  # of 4 x 100 draws


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_precision_is_that_of_the_target(name, impl):
    with jax.enable_x64(True):
        target = Target(
            sample_prior=lambda key: jax.random.normal(key, (2,), jnp.float32),
            log_prior=lambda z: -0.5 * jnp.sum(z**2),
            log_likelihood=lambda z: -0.5 * jnp.sum((z - 1.0) ** 2),
        )
        chains, _ = jax.eval_shape(
            lambda key: SHORT[name](key, target, num_samples=100),
            jax.random.key(0, impl=impl),
        )
    assert chains.dtype == jnp.float32
    assert chains.shape == (4, 25, 2)


@pytest.mark.parametrize("factory", FACTORIES)
def test_bad_configuration_is_refused(factory):
    for name in ("num_chains", "num_warmup", "thin", "num_candidates"):
        with pytest.raises(ValueError, match=name):
            factory(**{name: 0})
        with pytest.raises(TypeError, match=name):
            factory(**{name: 1.5})
    with pytest.raises(ValueError, match="num_candidates"):
        factory(num_chains=10, num_candidates=5)
    with pytest.raises(ValueError, match="num_samples"):
        factory()(jax.random.key(0), pick(0), num_samples=0)


@pytest.mark.parametrize("factory", [nuts, hmc, mala])
@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, np.nan])
def test_acceptance_rates_are_fractions(factory, rate):
    with pytest.raises(ValueError, match="target_acceptance"):
        factory(target_acceptance=rate)


def test_counts_of_one_sampler_only():
    with pytest.raises(ValueError, match="max_num_doublings"):
        nuts(max_num_doublings=0)
    with pytest.raises(ValueError, match="num_integration_steps"):
        hmc(num_integration_steps=0)
    with pytest.raises(ValueError, match="max_expansions"):
        slice_sampling(max_expansions=0)
