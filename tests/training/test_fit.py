"""The pure training function: rows, splits, stopping, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import sbijax as sj
from sbijax.training import TrainConfig, fit, steps
from sbijax.training.fit import init_state, run_epochs
from sbijax.training.steps import default_weight_decay, rates
from tests.helpers import linear_data


def make_stats(sims):
    example = jax.tree.map(lambda leaf: leaf[0], sims)
    return sj.Stats(example._replace(weight=jnp.ones(())), {}, {})


def estimator_of(net, loss):
    """An estimator with given initial parameters and a loss, and no posterior."""

    def init(key, sims):
        return sj.Params(net, make_stats(sims))

    return sj.Estimator(init, loss, None, None)


def squared_error(params, key, batch):
    residual = batch.theta - batch.x @ params.net["w"] - params.net["bias"]
    return jnp.sum(batch.weight * residual**2) / jnp.maximum(jnp.sum(batch.weight), 1)


ZEROS = {"w": jnp.zeros(2), "bias": jnp.zeros(())}
LINEAR = estimator_of(ZEROS, squared_error)


# Which rows are used ----------------------------------------------------------


def count_uses(params, key, batch):
    """Its gradient is minus the number of times each row is in the batch."""
    uses = params.net["uses"][batch.theta.astype(int)]
    return -jnp.sum(jnp.where(batch.weight > 0, uses, 0.0))


def uses_of_rows(weight, *, batch_size, validation_fraction, num_epochs=3):
    size = len(weight)
    sims = sj.make_simulations(np.arange(size), np.zeros(size), np.asarray(weight))
    counter = estimator_of({"uses": jnp.zeros(size)}, count_uses)
    config = TrainConfig(
        batch_size=batch_size,
        max_epochs=num_epochs,
        validation_fraction=validation_fraction,
        patience=100,
        optimizer=optax.sgd(1.0),
    )
    state = init_state(
        jax.random.key(0), sims, 1e-3, 0.0, estimator=counter, config=config
    )
    state = run_epochs(state, sims, num_epochs, estimator=counter, config=config)
    return state, np.asarray(state.net.tree()["uses"])


@pytest.mark.parametrize("validation_fraction", [0.0, 0.25])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 20])
def test_every_training_row_is_used_in_every_epoch(size, validation_fraction):
    state, uses = uses_of_rows(
        np.ones(size), batch_size=8, validation_fraction=validation_fraction
    )
    num_held_out = int(validation_fraction * size)
    assert int(state.num_train) == size - num_held_out
    assert np.sum(uses == 0) == num_held_out
    trained = uses[uses > 0]
    # Once in an epoch, or twice where the last batch is filled up.
    assert np.all(trained >= 3)
    assert np.all(trained <= 6)
    if len(trained) <= 8:
        assert np.all(trained == 3)
    assert np.all(trained == trained.astype(int))


def test_rows_of_weight_zero_are_never_used():
    weight = np.ones(20)
    weight[[0, 3, 4, 19]] = 0.0
    state, uses = uses_of_rows(weight, batch_size=4, validation_fraction=0.25)
    assert int(state.num_valid) == 16
    assert np.all(uses[weight == 0] == 0)
    assert np.sum(uses[weight > 0] == 0) == 4
    assert np.sum(uses) == 3 * 12


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.7])
def test_validation_rows_are_those_not_trained_on(fraction):
    # A loss that is the mean of theta, whatever the parameters: the validation
    # loss tells which rows were scored.
    size = 100
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2.0, size) * (rng.uniform(size=size) > 0.1)
    theta = rng.normal(size=size)

    def mean_theta(params, key, batch):
        total = jnp.sum(batch.weight)
        mean = jnp.sum(batch.weight * batch.theta) / jnp.where(total > 0, total, 1.0)
        return mean + 0.0 * params.net["w"]

    _, uses = uses_of_rows(weight, batch_size=7, validation_fraction=fraction)
    held_out = (uses == 0) & (weight > 0)
    assert held_out.sum() >= int(fraction * np.sum(weight > 0)) - 1
    _, info = fit(
        jax.random.key(0),
        estimator_of({"w": jnp.zeros(())}, mean_theta),
        sj.make_simulations(theta, np.zeros(size), weight),
        config=TrainConfig(max_epochs=2, validation_fraction=fraction, batch_size=7),
    )
    expected = np.average(theta[held_out], weights=weight[held_out])
    np.testing.assert_allclose(info.val_loss[0], expected, rtol=1e-4)


def test_large_validation_sets_are_scored_in_chunks():
    size = 9_000
    theta = np.random.default_rng(0).normal(size=size)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, size)

    def mean_theta(params, key, batch):
        mean = jnp.sum(batch.weight * batch.theta) / jnp.sum(batch.weight)
        return mean + 0.0 * params.net["w"]

    _, uses = uses_of_rows(
        weight, batch_size=2_000, validation_fraction=0.6, num_epochs=1
    )
    held_out = uses == 0
    _, info = fit(
        jax.random.key(0),
        estimator_of({"w": jnp.zeros(())}, mean_theta),
        sj.make_simulations(theta, np.zeros(size), weight),
        config=TrainConfig(max_epochs=1, validation_fraction=0.6, batch_size=2_000),
    )
    expected = np.average(theta[held_out], weights=weight[held_out])
    np.testing.assert_allclose(info.val_loss[0], expected, rtol=1e-3, atol=1e-5)


# Reaching the optimum ---------------------------------------------------------

CONFIG = TrainConfig(batch_size=64, patience=5, max_epochs=300)


@pytest.fixture(scope="module")
def trained():
    """A finished run on data whose optimum is known in closed form."""
    sims = linear_data(512, weighted=True)
    params, info = fit(
        jax.random.key(0),
        LINEAR,
        sims,
        config=CONFIG,
        learning_rate=3e-2,
        weight_decay=0.0,
    )
    return sims, params, jax.device_get(info)


def training_rows(sims, config):
    """The mask of training rows of a run with key 0."""
    size = len(sims.weight)
    _, uses = uses_of_rows(
        np.asarray(sims.weight),
        batch_size=config.batch_size,
        validation_fraction=config.validation_fraction,
        num_epochs=1,
    )
    assert size == len(uses)
    return uses > 0


def test_reaches_weighted_least_squares():
    # Weights that go with the residuals: the mean of small batches' own weighted
    # means has another minimum, .04 away.
    sims = linear_data(512, weighted=True)
    weight = np.exp(2.0 * (np.asarray(sims.theta) - np.asarray(sims.theta).mean()))
    sims = sims._replace(weight=jnp.asarray(weight))
    config = TrainConfig(
        batch_size=8, patience=10, num_decays=4, validation_fraction=0.0
    )
    params, info = fit(
        jax.random.key(0),
        LINEAR,
        sims,
        config=config,
        learning_rate=3e-2,
        weight_decay=0.0,
    )
    root = np.sqrt(weight)
    design = np.column_stack([sims.x, np.ones(512)])
    exact = np.linalg.lstsq(
        design * root[:, None], np.asarray(sims.theta) * root, rcond=None
    )[0]
    found = np.array([*params.net["w"], params.net["bias"]])
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert bool(info.converged)


def test_half_precision_is_trained_in_single():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ZEROS)
    sims = linear_data(512, weighted=False)
    settings = {"config": CONFIG, "learning_rate": 1e-2, "weight_decay": 0.0}
    found, exact = (
        fit(jax.random.key(0), estimator_of(net, squared_error), sims, **settings)[0]
        for net in (half, ZEROS)
    )
    assert found.net["w"].dtype == jnp.bfloat16
    # Within the two digits and a half that the type has.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a, float), b, atol=0.01),
        found.net,
        exact.net,
    )


def test_best_parameters_are_those_of_the_best_epoch(trained):
    sims, params, info = trained
    losses = info.val_loss[: info.num_epochs]
    assert info.best_loss == np.min(losses)
    assert info.best_epoch == np.argmin(losses)
    held_out = ~training_rows(sims, CONFIG) & (np.asarray(sims.weight) > 0)
    batch = jax.tree.map(lambda leaf: leaf[held_out], sims)
    again = squared_error(params, jax.random.key(0), batch)
    np.testing.assert_allclose(again, info.best_loss, rtol=1e-5)


def test_account_of_the_run(trained):
    _, _, info = trained
    assert info.train_loss.shape == info.val_loss.shape == (CONFIG.max_epochs,)
    for losses in (info.train_loss, info.val_loss):
        assert np.all(np.isfinite(losses[: info.num_epochs]))
        assert np.all(np.isnan(losses[info.num_epochs :]))
    waited = int(info.num_epochs) - 1 - int(info.best_epoch)
    assert waited % CONFIG.patience == 0
    assert 1 <= waited // CONFIG.patience <= CONFIG.num_decays + 1
    assert int(info.num_skipped) == 0


def test_early_stopping_without_any_progress():
    # A constant loss: the first epoch is the best, then patience runs out once
    # for every fall of the learning rate and once more.
    constant = estimator_of(
        ZEROS, lambda params, key, batch: 1.0 + 0.0 * params.net["bias"]
    )
    config = TrainConfig(patience=4, num_decays=3, max_epochs=100)
    _, info = fit(
        jax.random.key(0), constant, linear_data(50, weighted=True), config=config
    )
    assert int(info.num_epochs) == 1 + 4 * (3 + 1)
    assert int(info.best_epoch) == 0
    assert bool(info.converged)


@pytest.mark.parametrize(
    ("size", "batch_size", "patience"),
    [(500, 10, 5), (500, 50, 12), (40, None, 100), (500, 450, 100)],
)
def test_default_patience_is_epochs_and_steps(size, batch_size, patience):
    # 450 rows are trained on in 45 and 9 steps an epoch, 36 in one.
    constant = estimator_of(
        ZEROS, lambda params, key, batch: 1.0 + 0.0 * params.net["bias"]
    )
    config = TrainConfig(batch_size=batch_size, num_decays=1, max_epochs=300)
    sims = linear_data(size, weighted=False)
    _, info = fit(jax.random.key(0), constant, sims, config=config)
    assert int(info.num_epochs) == 1 + 2 * patience


def test_flow_matching_waits_longer():
    fmpe = sj.make_fmpe(sj.make_prior(dist.Normal(0.0, 1.0)))
    fmpe = fmpe._replace(loss=lambda params, key, batch: jnp.ones(()))
    config = TrainConfig(batch_size=10, num_decays=1, max_epochs=300)
    sims = linear_data(500, weighted=False)
    _, info = fit(jax.random.key(0), fmpe, sims, config=config)
    assert int(info.num_epochs) == 1 + 2 * 10


@pytest.mark.parametrize(
    ("weight_decay", "optimizer", "factors"),
    [
        (0.5, None, [(1.0, 1.0), (1.0, 0.2), (0.3, 0.06), (0.09, 0.018)]),
        (0.0, None, [(1.0, 1.0), (0.3, 0.06), (0.09, 0.018)]),
        (0.5, optax.sgd(0.1), [(1.0, 1.0), (0.3, 0.06), (0.09, 0.018)]),
    ],
)
def test_weight_decay_falls_before_the_learning_rate(weight_decay, optimizer, factors):
    config = CONFIG._replace(optimizer=optimizer)
    sims = linear_data(50, weighted=False)
    state = init_state(
        jax.random.key(0), sims, 0.1, weight_decay, estimator=LINEAR, config=config
    )
    for falls, expected in enumerate(factors):
        fallen = state._replace(num_decays=jnp.asarray(falls))
        np.testing.assert_allclose(rates(fallen, config), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "factors"),
    [
        # The first fall is of use: both go on falling.
        ([1.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0, 2.0], (0.09, 0.018)),
        # It is in vain: more than at first, until the learning rate is low.
        ([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], (0.09, 3.6)),
        ([1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0], (0.09, 3.6)),
    ],
)
def test_more_weight_decay_where_less_was_in_vain(losses, factors):
    config = CONFIG._replace(patience=2)
    sims = linear_data(50, weighted=False)
    state = init_state(
        jax.random.key(0), sims, 0.1, 0.5, estimator=LINEAR, config=config
    )
    for loss in losses:
        state = steps._judge(
            state, jnp.asarray(loss), jnp.asarray(loss), LINEAR, config
        )
    assert int(state.num_decays) == 3
    rate, shrinkage = rates(state, config)
    np.testing.assert_allclose(
        (rate, shrinkage * state.weight_decay / 0.5), factors, rtol=1e-5
    )


def test_small_data_start_with_much_weight_decay():
    np.testing.assert_allclose(default_weight_decay(2_500), 0.5)
    sizes = [1, 100, 1_000, 10_000, 100_000]
    decays = [default_weight_decay(size) for size in sizes]
    assert decays == sorted(decays, reverse=True)
    assert decays[0] == 2.0
    # It is what fit takes.
    config = CONFIG._replace(max_epochs=2)
    sims = linear_data(100, weighted=True)
    chosen, given = (
        fit(jax.random.key(0), LINEAR, sims, config=config, **settings)[0]
        for settings in ({}, {"weight_decay": default_weight_decay(100)})
    )
    jax.tree.map(np.testing.assert_array_equal, chosen, given)


def test_max_epochs_is_a_limit():
    config = CONFIG._replace(max_epochs=3)
    _, info = fit(
        jax.random.key(0), LINEAR, linear_data(100, weighted=True), config=config
    )
    assert int(info.num_epochs) == 3
    assert not bool(info.converged)


def test_custom_optimizer():
    sims = linear_data(256, weighted=True)
    config = CONFIG._replace(optimizer=optax.sgd(0.05), max_epochs=100)
    params, info = fit(
        jax.random.key(0), LINEAR, sims, config=config, learning_rate=1e-9
    )
    np.testing.assert_allclose(params.net["w"], [1.0, -0.5], atol=0.1)
    np.testing.assert_allclose(params.net["bias"], 0.7, atol=0.1)
    assert float(info.best_loss) < 0.2


def test_weight_decay_is_for_weights_only():
    net = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones((3, 2)),  # of three stacked layers
        "scale": jnp.ones(2),
    }
    idle = estimator_of(
        net,
        lambda params, key, batch: 0.0 * sum(map(jnp.sum, jax.tree.leaves(params.net))),
    )
    sims, config = (
        linear_data(50, weighted=True),
        TrainConfig(max_epochs=5, batch_size=10),
    )
    state = init_state(jax.random.key(0), sims, 0.1, 0.5, estimator=idle, config=config)
    state = run_epochs(state, sims, 5, estimator=idle, config=config)
    # The learning rate warms up over 100 steps.
    factor = np.prod(1.0 - 0.5 * 0.1 * np.arange(1, 26) / 100)
    np.testing.assert_allclose(state.net.tree()["kernel"], factor, rtol=1e-4)
    assert np.all(state.net.tree()["bias"] == 1.0)
    assert np.all(state.net.tree()["scale"] == 1.0)


def test_the_default_optimizer_is_clipped_adam_with_decoupled_decay():
    sims = linear_data(64, weighted=False)
    sims = sims._replace(theta=100.0 * sims.theta)  # gradients that are clipped
    estimator = estimator_of(ZEROS, squared_error)
    config = TrainConfig(max_epochs=6, batch_size=64, validation_fraction=0.0)
    state = init_state(
        jax.random.key(0), sims, 0.1, 0.5, estimator=estimator, config=config
    )
    net, start = state.net.tree(), state.net.tree()
    state = run_epochs(state, sims, 6, estimator=estimator, config=config)

    adam = optax.chain(optax.clip_by_global_norm(5.0), optax.scale_by_adam())
    memory = adam.init(net)
    for i in range(6):
        grads = jax.grad(lambda n: squared_error(sj.Params(n, None), None, sims))(net)
        updates, memory = adam.update(grads, memory)
        rate = 0.1 * (i + 1) / 100
        net = jax.tree.map(lambda p, u, rate=rate: p - rate * u, net, updates)
    assert optax.tree.norm(grads) > 5.0
    for name, value in net.items():
        np.testing.assert_allclose(state.net.tree()[name], value, rtol=1e-3)
        assert np.all(value != start[name])


def test_a_first_step_that_is_not_finite_changes_nothing():
    sims = linear_data(64, weighted=False)
    estimator = estimator_of(ZEROS, lambda *args: jnp.nan * squared_error(*args))
    state = init_state(
        jax.random.key(0), sims, 0.1, 0.5, estimator=estimator, config=CONFIG
    )
    start = state.net.vector
    state = run_epochs(state, sims, 1, estimator=estimator, config=CONFIG)
    assert state.num_skipped == state.step > 0
    np.testing.assert_array_equal(state.net.vector, start)
    np.testing.assert_array_equal(state.average.vector, start)


def test_steps_with_non_finite_gradients_are_skipped_and_counted():
    def sometimes_nan(params, key, batch):
        fails = jax.random.uniform(key) < 0.3
        return squared_error(params, None, batch) * jnp.where(fails, jnp.nan, 1.0)

    # The validation key is the same in every epoch; this one is finite.
    assert jax.random.uniform(jax.random.key(0)) > 0.3
    sims = linear_data(512, weighted=True)
    params, info = fit(
        jax.random.key(1),
        estimator_of(ZEROS, sometimes_nan),
        sims,
        config=CONFIG._replace(max_epochs=60),
        learning_rate=3e-2,
        weight_decay=0.0,
    )
    num_steps = 8 * int(info.num_epochs)
    # Binomial: five standard deviations around 30 %.
    error = 5 * np.sqrt(0.3 * 0.7 / num_steps)
    assert abs(int(info.num_skipped) / num_steps - 0.3) < error
    np.testing.assert_allclose(params.net["w"], [1.0, -0.5], atol=0.05)
    assert np.all(np.isfinite(info.val_loss[: int(info.num_epochs)]))


def test_rows_that_fail_do_not_stop_the_others():
    # One training row always gives NaN; its batches are skipped.
    size = 64
    sims = linear_data(size, weighted=True)
    bad = int(np.flatnonzero(training_rows(sims, CONFIG._replace(batch_size=8)))[0])

    def loss(params, key, batch):
        hit = jnp.any((batch.weight > 0) & (batch.theta == sims.theta[bad]))
        return squared_error(params, key, batch) * jnp.where(hit, jnp.nan, 1.0)

    params, info = fit(
        jax.random.key(0),
        estimator_of(ZEROS, loss),
        sims,
        config=CONFIG._replace(batch_size=8, max_epochs=80),
        learning_rate=3e-2,
        weight_decay=0.0,
    )
    assert int(info.num_skipped) >= int(info.num_epochs)
    np.testing.assert_allclose(params.net["w"], [1.0, -0.5], atol=0.15)


def test_rows_that_all_failed_do_not_count_in_the_validation():
    def mean(params, key, batch):  # not finite where no row has weight
        residual = batch.theta - batch.x @ params.net["w"] - params.net["bias"]
        return jnp.sum(batch.weight * residual**2) / jnp.sum(batch.weight)

    sims = linear_data(200, weighted=False)
    sims = sims._replace(weight=jnp.where(jnp.arange(200) < 60, 1.0, 0.0))
    config = CONFIG._replace(batch_size=8, max_epochs=5, validation_fraction=0.5)
    _, info = fit(
        jax.random.key(0),
        estimator_of(ZEROS, mean),
        sims,
        config=config,
        learning_rate=3e-2,
        weight_decay=0.0,
    )
    assert np.all(np.isfinite(info.val_loss[: int(info.num_epochs)]))


def test_few_rows_without_validation():
    for size in (1, 2):
        params, info = fit(
            jax.random.key(0),
            LINEAR,
            linear_data(size, noise=0.0, weighted=True),
            config=TrainConfig(max_epochs=50),
            learning_rate=5e-2,
        )
        assert np.isfinite(info.best_loss)
        assert float(info.best_loss) < float(info.val_loss[0])


# Transformations --------------------------------------------------------------

SHORT = TrainConfig(batch_size=16, max_epochs=4)


def run(key, sims, rate):
    return fit(key, LINEAR, sims, config=SHORT, learning_rate=rate)


def assert_lane(many, one, i):
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


def test_jit_over_the_whole_run_equals_the_plain_call():
    sims = linear_data(60, weighted=True)
    plain = run(jax.random.key(0), sims, 1e-2)
    compiled = jax.jit(run)(jax.random.key(0), sims, 1e-2)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_vmap_over_keys():
    sims = linear_data(60, weighted=True)
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(run, (0, None, None)))(keys, sims, 1e-2)
    for i, key in enumerate(jax.random.clone(keys)):
        assert_lane(many, run(key, sims, 1e-2), i)
    assert len({float(loss) for loss in many[1].best_loss}) == 3


def test_vmap_over_learning_rates():
    sims = linear_data(60, weighted=True)
    rates = jnp.array([1e-4, 1e-2, 1e-1])
    key = jax.random.key(0)
    many = jax.jit(jax.vmap(run, (None, None, 0)))(key, sims, rates)
    for i, rate in enumerate(rates):
        assert_lane(many, run(jax.random.key(0), sims, rate), i)
    # A warm-up of 100 steps keeps all of them slow, in order of their rate.
    assert float(many[1].best_loss[2]) < float(many[1].best_loss[0])


def test_vmap_over_data_sets_with_different_numbers_of_rows():
    full, part = linear_data(60, weighted=True), linear_data(60, seed=1, weighted=True)
    part = part._replace(weight=part.weight.at[20:].set(0.0))
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), full, part)
    many = jax.jit(jax.vmap(run, (None, 0, None)))(jax.random.key(0), stacked, 1e-2)
    for i, sims in enumerate((full, part)):
        assert_lane(many, run(jax.random.key(0), sims, 1e-2), i)


def test_lanes_stop_on_their_own():
    # One lane stops early, the other goes on: neither touches the other.
    config = TrainConfig(batch_size=64, max_epochs=200, patience=3, num_decays=0)
    sims = linear_data(128, weighted=True)

    def go(key, rate):
        return fit(
            key, LINEAR, sims, config=config, learning_rate=rate, weight_decay=0.0
        )

    keys = jax.random.split(jax.random.key(0), 2)
    rates = jnp.array([0.3, 3e-3])
    many = jax.jit(jax.vmap(go))(keys, rates)
    epochs = [int(n) for n in many[1].num_epochs]
    assert epochs[0] < epochs[1]
    for i, key in enumerate(jax.random.clone(keys)):
        assert_lane(many, go(key, rates[i]), i)


def test_keys_are_consumed_once():
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        run(key, linear_data(60, weighted=True), 1e-2)
        with pytest.raises(jax.errors.KeyReuseError):
            run(key, linear_data(60, weighted=True), 1e-2)
