"""FMPE and NPSE: estimated densities, reports of the solver, ensembles, bad parts."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sbijax as sj
from sbijax import losses, networks, samplers

PRIOR = sj.make_prior(dist.Uniform(jnp.zeros(3), jnp.ones(3)))


def make_sims(num=64):
    theta = jax.random.uniform(jax.random.key(0), (num, 3))
    return sj.make_simulations(theta, theta[:, :2])


def make_fmpe(**options):
    return sj.make_fmpe(
        PRIOR,
        network=networks.field_resnet(hidden_size=16, num_blocks=1),
        embedding=networks.flatten(),
        **options,
    )


def start(estimator):
    return bend(estimator, make_sims())


def bend(estimator, sims):
    """Parameters of a field that bends."""
    params = jax.jit(estimator.init)(jax.random.key(1), sims)
    leaves, structure = jax.tree.flatten(params.net)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return params._replace(net=jax.tree.unflatten(structure, moved))


def test_estimated_log_prob_is_unbiased_and_knows_its_error():
    fmpe = make_fmpe()
    params, theta, x = start(fmpe), jnp.array([0.3, 0.6, 0.5]), jnp.array([0.2, 0.7])
    exact = fmpe.log_prob(params, theta, x)
    keys = jax.random.split(jax.random.key(3), 200)
    value, error = jax.jit(
        jax.vmap(lambda key: fmpe.estimate_log_prob(params, key, theta, x))
    )(keys)
    spread = np.std(value)
    assert spread > 1e-3
    assert abs(np.mean(value) - exact) < 4 * spread / 200**0.5 + 1e-3
    # The error that is stated is the spread that is seen.
    assert abs(np.sqrt(np.mean(error**2)) / spread - 1.0) < 0.2


def test_estimated_log_prob_outside_the_support():
    fmpe = make_fmpe()
    value, error = fmpe.estimate_log_prob(
        start(fmpe), jax.random.key(0), jnp.array([0.3, 1.6, 0.5]), jnp.zeros(2)
    )
    assert (float(value), float(error)) == (-np.inf, 0.0)


def test_draws_follow_the_density():
    prior = sj.make_prior(dist.Uniform(-1.0, 2.0))
    theta = jax.vmap(prior.sample)(jax.random.split(jax.random.key(0), 64))
    npse = sj.make_npse(
        prior,
        network=networks.field_resnet(hidden_size=16, num_blocks=1),
        embedding=networks.flatten(),
    )
    params = bend(npse, sj.make_simulations(theta, theta))
    posterior = sj.infer(npse, params, 0.4)
    edges = jnp.linspace(-1.0, 2.0, 31)
    inner = jnp.linspace(-1.0, 2.0, 1_501)[1:-1]
    density = jnp.exp(jax.jit(jax.vmap(posterior.log_prob))(inner))
    mass = np.histogram(inner, edges, weights=density)[0] * 3.0 / 1_500
    assert abs(mass.sum() - 1.0) < 0.01
    draws = posterior.sample(jax.random.key(3), 20_000)
    counts = np.histogram(draws, edges)[0]
    assert mass.max() > 2.0 * np.median(mass)  # it is not the prior
    expected = 20_000 * mass / mass.sum()
    enough = expected > 50
    distance = np.sum((counts - expected)[enough] ** 2 / expected[enough])
    assert stats.chi2.sf(distance, enough.sum() - 1) > 1e-4


@pytest.mark.parametrize("loss", [losses.ve(), losses.vp()], ids=["ve", "vp"])
def test_the_field_is_asked_where_it_was_trained(loss):
    asked = []
    inner = networks.field_resnet(hidden_size=4, num_blocks=1)

    def apply(net, u, angle, context):
        jax.debug.callback(lambda a: asked.append(float(a)), angle)
        return inner.apply(net, u, angle, context)

    npse = sj.make_npse(
        PRIOR,
        loss=loss,
        network=sj.base.Network(inner.init, apply),
        embedding=networks.flatten(),
        sampler=samplers.sde(num_steps=5),
    )
    params = npse.init(jax.random.key(1), make_sims())
    asked.clear()
    npse.sample(params, jax.random.key(2), jnp.zeros(2), num_samples=1)
    jax.effects_barrier()
    low, high = loss.angles
    assert 0.0 < low < 0.02
    assert 1.4 < high < np.pi / 2
    assert max(asked) == pytest.approx(high)
    assert min(asked) >= low * 0.999


def test_draws_that_do_not_arrive_are_said():
    fmpe = make_fmpe(sampler=samplers.ode(max_num_steps=2))
    params, x = start(fmpe), jnp.array([0.2, 0.7])
    with pytest.warns(sj.SbijaxWarning, match="10 draws stopped on the way after 2"):
        sj.infer(fmpe, params, x).sample(jax.random.key(0), 10)
    fmpe = make_fmpe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sj.infer(fmpe, params, x).sample(jax.random.key(0), 10)


def test_an_ensemble_reports_what_its_solvers_do():
    fmpe = make_fmpe(sampler=samplers.sde(num_steps=7))
    many = sj.ensemble(fmpe, num_members=3)
    params = start(many)
    theta, info = many.sample(params, jax.random.key(0), jnp.zeros(2), num_samples=10)
    assert theta.shape == (10, 3)
    assert int(info.num_steps) == 7
    assert int(info.num_entries) == 2


def test_a_trained_score_is_that_of_the_noisy_posterior():
    # theta ~ N(0, 1), x = theta + N(0, 1): y is theta's residual, N(0, 1), and its
    # field vanishes at every angle.
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    theta, noise = jax.random.normal(jax.random.key(0), (2, 4_000))
    sims = sj.make_simulations(theta, theta + noise)
    seen = {}
    network = networks.field_resnet(hidden_size=32, num_blocks=1)

    def sampler(key, field, *, shape):
        angle = jnp.linspace(0.05, 1.5, 30)
        u = jnp.linspace(-2.0, 2.0, 9)[:, None]
        seen["field"] = jax.vmap(lambda a: jax.vmap(lambda v: field(v, a))(u))(angle)
        return samplers.ode()(key, field, shape=shape)

    npse = sj.make_npse(prior, network=network, sampler=sampler)
    params, _ = sj.train(jax.random.key(1), npse, sims, max_epochs=60, progress=False)
    draws, _ = npse.sample(params, jax.random.key(2), 0.8, num_samples=4_000)
    # score = -(sin u - cos F) / sigma; an error of F counts by its square.
    assert np.sqrt(np.mean(np.asarray(seen["field"]) ** 2)) < 0.15
    assert abs(np.mean(draws) - 0.4) < 0.1
    assert abs(np.std(draws) / 0.5**0.5 - 1.0) < 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"network": networks.field_resnet}, "network must be a network"),
        ({"embedding": 3}, "embedding must be a network"),
        ({"sampler": samplers.nuts()}, "sampler must draw along a field"),
        ({"sampler": samplers.ode}, "sampler must draw along a field"),
        ({"loss": losses.edm}, "loss must be of type DiffusionLoss"),
        ({"loss": losses.nre_b()}, "loss must be of type DiffusionLoss"),
    ],
)
def test_other_parts_are_refused(options, match):
    with pytest.raises(TypeError, match=match):
        sj.make_fmpe(PRIOR, **options)
