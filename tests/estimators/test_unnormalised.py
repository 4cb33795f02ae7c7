"""Posteriors of several observations at once."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax.samplers import importance_resampling


def make(prior):
    """NLE that knows p(x | theta) = N(x; theta, 1) before any training."""
    return sj.make_nle(
        prior,
        density=sj.densities.maf(num_layers=1, hidden_size=8),
        embedding=sj.networks.mlp(4, hidden_sizes=(8,)),
        sampler=importance_resampling(num_candidates=2_000),
    )


@pytest.fixture(scope="module")
def trained():
    theta, noise = jax.random.normal(jax.random.key(0), (2, 2_000))
    nle = make(sj.make_prior(dist.Normal(0.0, 1.0)))
    sims = sj.make_simulations(theta, theta + noise)
    return nle, nle.init(jax.random.key(1), sims)


def draw(nle, params, key, x):
    return nle.sample(params, key, x, num_samples=500)


def test_vmap_over_seeds_and_observations_equals_a_loop(trained):
    keys = jax.random.split(jax.random.key(2), (2, 3))
    xs = jnp.array([-1.0, 0.0, 1.0])
    one = jax.jit(lambda key, x: draw(*trained, key, x)[0])
    many = jax.jit(jax.vmap(jax.vmap(one), in_axes=(0, None)))
    together = many(jax.random.clone(keys), xs)
    assert together.shape == (2, 3, 500)
    flat = keys.ravel()
    for i in range(2):
        for j in range(3):
            alone = one(jax.random.clone(flat[3 * i + j]), xs[j])
            np.testing.assert_allclose(together[i, j], alone, rtol=1e-5)


def test_vmap_over_parameters(trained):
    nle, params = trained
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    theta, info = jax.vmap(lambda p: draw(nle, p, jax.random.key(3), 0.5))(both)
    assert theta.shape == (2, 500)
    assert info.rhat.shape == (2, 1)
    np.testing.assert_array_equal(theta[0], theta[1])


def test_the_prior_may_be_traced(trained):
    _, params = trained

    def one(scale):
        nle = make(sj.make_prior(dist.Normal(0.0, scale)))
        return draw(nle, params, jax.random.key(4), 0.0)[0]

    scales = jnp.array([0.1, 1.0])
    together = jax.vmap(one)(scales)
    for scale, theta in zip(scales, together, strict=True):
        np.testing.assert_allclose(jax.jit(one)(scale), theta, rtol=1e-4, atol=1e-6)
    assert jnp.std(together[0]) < 0.2 * jnp.std(together[1])


def test_a_key_that_is_used_twice_is_found(trained):
    @jax.jit
    def twice(key):
        return draw(*trained, key, 0.0)[0] + draw(*trained, key, 1.0)[0]

    with pytest.raises(jax.errors.KeyReuseError):
        twice(jax.random.key(5))


@pytest.mark.parametrize("factory", [sj.make_nle, sj.make_nre])
def test_a_factory_in_place_of_a_sampler_is_refused(factory):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"factory such as samplers\.tempered_smc"):
        factory(prior, sampler=importance_resampling)


def test_a_ratio_says_why_it_cannot_emulate():
    nre = sj.make_nre(sj.make_prior(dist.Normal(0.0, 1.0)))
    with pytest.raises(AttributeError, match="cannot emulate x. Train make_nle"):
        nre.emulate(None, jax.random.key(0), 0.0)
