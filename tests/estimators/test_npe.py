"""What `make_npe` takes, and what it says of what it does not take."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj

PRIOR = sj.make_prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(0.0, 1.0)})


def make_data(num_rows=50):
    theta = jax.vmap(PRIOR.sample)(jax.random.split(jax.random.key(0), num_rows))
    x = jnp.stack([theta["a"], theta["b"], theta["a"] * theta["b"]], axis=1)
    return sj.make_simulations(theta, x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior": dist.Normal(0.0, 1.0)}, "^prior must be of type Prior, got Normal"),
        ({"density": "nsf"}, "^density must be of type Density, got str"),
        ({"density": sj.densities.nsf}, "got the function nsf; it may have to be call"),
        ({"density": sj.Density}, "got the class Density"),
        ({"embedding": 3}, "^embedding must be a network, got int"),
        ({"embedding": sj.networks.mlp}, "got the function mlp; it may have to be cal"),
        ({"embedding": nn.Dense}, "^embedding must be a network, got the class Dense"),
        ({"standardizer": "zscore"}, "^standardizer must be of type Standardizer"),
        ({"standardizer": sj.networks.zscore}, "got the function zscore"),
    ],
)
def test_parts_of_another_kind_are_refused_at_once(arguments, words):
    with pytest.raises(TypeError, match=words):
        sj.make_npe(**{"prior": PRIOR, **arguments})


def test_a_linen_module_is_an_embedding():
    npe = sj.make_npe(PRIOR, embedding=nn.Dense(4), density=sj.densities.mdn())
    params = npe.init(jax.random.key(1), make_data())
    assert params.net["embedding"]["params"]["kernel"].shape == (3, 4)
    assert np.isfinite(npe.loss(params, jax.random.key(1), make_data()))


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_the_context_is_a_vector(shape):
    embedding = sj.Network(
        init=lambda key, x: {}, apply=lambda params, x: jnp.sum(x) * jnp.ones(shape)
    )
    npe = sj.make_npe(PRIOR, embedding=embedding)
    with pytest.raises(ValueError, match=r"embedding must map one x to a vector \[H\]"):
        npe.init(jax.random.key(1), make_data())


def test_simulations_outside_the_prior_are_counted():
    sims = make_data()
    npe = sj.make_npe(PRIOR, density=sj.densities.mdn(num_components=1))
    assert npe.init(jax.random.key(1), sims).stats.num_outside == 0
    beyond = sims.theta | {"b": sims.theta["b"].at[:7].add(1.0)}
    sims = sims._replace(theta=beyond, weight=sims.weight.at[0].set(0.0))
    assert npe.init(jax.random.key(1), sims).stats.num_outside == 6


@pytest.mark.filterwarnings("ignore:training used all")
@pytest.mark.parametrize("num_outside", [3, 49])
def test_training_says_that_simulations_lie_outside_the_prior(num_outside):
    sims = make_data()
    beyond = sims.theta | {"b": sims.theta["b"].at[:num_outside].add(1.0)}
    npe = sj.make_npe(PRIOR, density=sj.densities.mdn(num_components=1))
    words = f"in {num_outside} of 50 simulations"
    with pytest.warns(sj.SbijaxWarning, match=words):
        sj.train(
            jax.random.key(1),
            npe,
            sims._replace(theta=beyond),
            max_epochs=1,
            progress=False,
        )


def test_training_refuses_simulations_that_all_lie_outside_the_prior():
    sims = make_data()
    beyond = sims.theta | {"b": sims.theta["b"] - 1.0}
    npe = sj.make_npe(PRIOR, density=sj.densities.mdn(num_components=1))
    with pytest.raises(ValueError, match="in 50 of 50 simulations; check that"):
        sj.train(jax.random.key(1), npe, sims._replace(theta=beyond), progress=False)


def train_briefly(npe, sims):
    params, _ = sj.train(jax.random.key(1), npe, sims, max_epochs=1, progress=False)
    posterior = sj.infer(npe, params, sims.x[0])
    return posterior.sample(jax.random.key(2), 5)


@pytest.mark.filterwarnings("ignore:training used all")
def test_trains_and_draws_in_double_precision():
    with jax.enable_x64(True):
        draws = train_briefly(sj.make_npe(PRIOR), make_data())
        assert draws["a"].dtype == np.float64


@pytest.mark.filterwarnings("ignore:training used all")
@pytest.mark.parametrize("option", ["dtype", "param_dtype"])
def test_an_embedding_of_half_precision(option):
    embedding = nn.Dense(4, **{option: jnp.bfloat16})
    npe = sj.make_npe(PRIOR, embedding=embedding, density=sj.densities.maf())
    assert np.all(np.isfinite(train_briefly(npe, make_data())["a"]))
