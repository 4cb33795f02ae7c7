"""Training on fresh simulations: what it learns, and that a run can go on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import densities

PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))
NPE = sj.make_npe(PRIOR, density=densities.mdn(num_components=1))
SHORT = {"steps_per_epoch": 20, "batch_size": 50, "num_validation": 200}


def simulator(key, theta):
    """A noise of unit scale around the square of theta."""
    return theta**2 + jax.random.normal(key)


def run(seed=0, simulator=simulator, **options):
    return sj.train_online(
        jax.random.key(seed),
        NPE,
        PRIOR,
        simulator,
        **(SHORT | {"progress": False, "max_epochs": 4} | options),
    )


def assert_same_bits(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:training used all")
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path):
    whole, whole_info = run()
    first, info = run(checkpoint=tmp_path / "run")
    again, again_info = run(checkpoint=tmp_path / "run")
    assert_same_bits(whole, first)
    assert_same_bits(whole, again)
    assert int(again_info.num_epochs) == int(whole_info.num_epochs) == 4


@pytest.mark.filterwarnings("ignore:training used all")
def test_a_checkpoint_of_another_simulator_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="other simulations"):
        run(checkpoint=tmp_path / "run", simulator=lambda key, theta: theta)


@pytest.mark.filterwarnings("ignore:training used all")
def test_batches_are_fresh():
    # With one batch seen again and again the losses of steps would fall apart from
    # the validation loss; here both are means over new draws.
    _, info = run(steps_per_epoch=100, max_epochs=6, num_validation=4_000)
    gap = np.asarray(info.val_loss - info.train_loss)[2:6]
    assert np.all(np.abs(gap) < 0.1)


@pytest.mark.slow
def test_it_finds_the_posterior():
    # theta ~ N(0, 1), x = theta + N(0, 1): theta | x ~ N(x / 2, 1 / 2).
    params, info = sj.train_online(
        jax.random.key(1),
        NPE,
        PRIOR,
        lambda key, theta: theta + jax.random.normal(key),
        max_epochs=20,
        steps_per_epoch=100,
        batch_size=200,
        progress=False,
    )
    draws = sj.infer(NPE, params, 1.2).sample(jax.random.key(2), 10_000)
    assert abs(np.mean(draws) - 0.6) < 0.05
    assert abs(np.std(draws) / 0.5**0.5 - 1.0) < 0.05
    # The entropy of the posterior, 1/2 log(2 pi e / 2), is the least loss.
    assert float(info.best_loss) < 0.5 * np.log(np.pi * np.e) + 0.03


@pytest.mark.filterwarnings("ignore:training used all")
def test_failed_simulations_have_no_weight():
    def failing(key, theta):
        return jnp.where(theta > 0, jnp.nan, theta + jax.random.normal(key))

    with pytest.warns(sj.SbijaxWarning, match="of 200 simulations have weight 0"):
        params, info = run(simulator=failing)
    assert np.isfinite(float(info.best_loss))
    assert int(info.num_skipped) == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params.net))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be at least 1"),
        ({"num_validation": 1}, ValueError, "num_validation must be at least 2"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be positive"),
        ({"simulator": 3}, TypeError, "simulator must be a function"),
    ],
)
def test_absurd_settings_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        run(**options)


def test_parts_in_another_order_are_refused():
    with pytest.raises(TypeError, match="The order is train_online"):
        sj.train_online(jax.random.key(0), PRIOR, NPE, simulator)
