"""Neural ratio estimation: where its wrong thetas come from, and what that is for."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj

WIDTHS = (1.0, 0.1)


def noisy(key, theta):
    """Noise of either of two widths, by the toss of a coin."""
    coin, noise = jax.random.split(key)
    width = jnp.where(jax.random.bernoulli(coin), *WIDTHS)
    return theta + width * jax.random.normal(noise, theta.shape)


PRIORS = {
    "uniform": dist.Uniform(-10.0, 10.0).expand([2]).to_event(1),
    "positive": dist.LogNormal(0.0, 1.0).expand([2]).to_event(1),
    "simplex": dist.Dirichlet(jnp.ones(3)),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_wrong_thetas_are_drawn_from_what_the_ratios_are_relative_to(prior):
    # Before training r is the ratio of a normalised density to the prior, so its
    # mean under m, by which the losses see it divided, is 1, and it is below 2.
    def ratios_of_wrong_thetas(log_ratios):
        def loss_fn(params, key, batch):
            rows_key, key = jax.random.split(key)
            size = batch.weight.size
            partners = jax.random.randint(rows_key, (size, 8), 0, size)
            found = log_ratios(params, key, batch.theta, batch.x, partners)
            return jnp.exp(found[:, 1:])

        return loss_fn

    prior = sj.make_prior(prior)
    sims = sj.simulate(jax.random.key(0), prior, noisy, 5_000, progress=False)
    nre = sj.make_nre(prior, loss=ratios_of_wrong_thetas)
    params = nre.init(jax.random.key(1), sims)
    ratios = np.asarray(jax.jit(nre.loss)(params, jax.random.key(2), sims), float)
    assert ratios.max() <= 2.0 + 1e-3
    assert ratios.std() > 0.1
    # Means over one of the two axes each; what moves them most is the thetas drawn.
    error = ratios.mean(axis=1).std() / len(ratios) ** 0.5
    assert abs(ratios.mean() - 1.0) < 5 * error


@pytest.mark.parametrize("loss", [None, sj.losses.nre_c()], ids=["b", "c"])
def test_narrow_posterior_of_two_widths_is_learned(loss):
    prior = sj.make_prior(PRIORS["uniform"])
    sims = sj.simulate(jax.random.key(0), prior, noisy, 3_000, progress=False)
    nre = sj.make_nre(prior, loss=loss)
    params, _ = sj.train(jax.random.key(1), nre, sims, progress=False)

    axis = jnp.linspace(-4.0, 4.0, 201)
    steps = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    square = np.sum(np.asarray(steps, float) ** 2, axis=1)
    exact = normalise(
        np.logaddexp(*(-0.5 * square / w**2 - 2.0 * np.log(w) for w in WIDTHS))
    )
    log_ratio = jax.vmap(lambda step, x: nre.log_ratio(params, x + step, x), (0, None))
    for x in ([0.0, 0.0], [3.0, -4.0], [-5.0, 2.0]):
        learned = normalise(np.asarray(log_ratio(steps, jnp.array(x)), float))
        divergence = np.sum(np.exp(exact) * (exact - learned))
        # .03 to .12 over seeds; .43 to 1.2 with thetas from the prior alone
        assert 0.0 <= divergence < 0.2


def normalise(log_density):
    largest = log_density.max()
    return log_density - largest - np.log(np.sum(np.exp(log_density - largest)))
