"""Training for people: what is refused, said, shown, and kept on Ctrl-C."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import sbijax as sj
from sbijax import densities, networks
from sbijax.training import TrainConfig, TrainInfo, fit
from sbijax.training.reports import report_run
from sbijax.training.steps import default_weight_decay
from tests.helpers import assert_same_bits, linear_data

train_module = importlib.import_module("sbijax.training.train")


def squared_error(params, key, batch):
    residual = batch.theta - batch.x @ params.net["w"] - params.net["bias"]
    return jnp.sum(batch.weight * residual**2) / jnp.maximum(jnp.sum(batch.weight), 1)


def estimator_of(loss, net=None):
    """An estimator with a loss and no posterior."""
    net = {"w": jnp.zeros(2), "bias": jnp.zeros(())} if net is None else net

    def init(key, sims):
        example = jax.tree.map(lambda leaf: leaf[0], sims)
        return sj.Params(net, sj.Stats(example, {}, {}))

    return sj.Estimator(init, loss, None, None)


LINEAR = estimator_of(squared_error)


def small_npe():
    def small(num_outputs):
        return networks.mlp(num_outputs, hidden_sizes=(8,))

    return sj.make_npe(
        sj.make_prior(dist.Normal(0.0, 1.0)),
        density=densities.mdn(num_components=1, network=small),
        embedding=networks.flatten(),
    )


NPE = small_npe()


def run(seed=0, sims=None, estimator=LINEAR, **settings):
    """Train without a word."""
    settings = {"progress": False, "learning_rate": 3e-2} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.SbijaxWarning)
        return sj.train(
            jax.random.key(seed),
            estimator,
            linear_data() if sims is None else sims,
            **settings,
        )


def losses(info):
    return np.asarray(info.val_loss)[: int(info.num_epochs)]


@pytest.fixture
def one_epoch_at_a_time(monkeypatch):
    monkeypatch.setattr(train_module, "_SECONDS_PER_CALL", 0.0)


# The result -------------------------------------------------------------------


def test_train_is_fit(one_epoch_at_a_time):
    params, info = run(max_epochs=7)
    assert int(info.num_epochs) == 7
    expected = fit(
        jax.random.key(0),
        LINEAR,
        linear_data(),
        config=TrainConfig(max_epochs=7),
        learning_rate=3e-2,
    )
    for a, b in zip(
        jax.tree.leaves((params, info)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_setting_reaches_the_run(monkeypatch):
    class Seen(Exception):
        pass

    def look(key, sims, learning_rate, weight_decay, *, estimator, config):
        raise Seen(config, learning_rate, weight_decay)

    config = TrainConfig(5, 7, 0.5, 2, 0, optax.sgd(0.1))
    settings = config._asdict()
    assert settings.pop("source") is None  # what train_online has for sims
    monkeypatch.setattr(train_module, "init_state", look)
    with pytest.raises(Seen) as seen:
        run(**settings, learning_rate=0.2, weight_decay=0.3)
    assert seen.value.args == (config, 0.2, 0.3)
    with pytest.raises(Seen) as seen:
        sj.train(jax.random.key(0), LINEAR, linear_data())
    num_rows = linear_data().weight.size
    assert seen.value.args == (TrainConfig(), 5e-3, default_weight_decay(num_rows))


def test_flow_and_score_matching_take_smaller_steps(monkeypatch):
    class Seen(Exception):
        pass

    def look(key, sims, learning_rate, weight_decay, *, estimator, config):
        raise Seen(learning_rate)

    monkeypatch.setattr(train_module, "init_state", look)
    prior = sj.make_prior(dist.Normal(jnp.zeros(2), 1.0))
    for make, expected in ((sj.make_fmpe, 2e-3), (sj.make_npse, 2e-3)):
        with pytest.raises(Seen) as seen:
            sj.train(jax.random.key(0), make(prior), linear_data(), progress=False)
        assert seen.value.args == (expected,)


def test_patience_ends_the_run():
    _, info = run(patience=2, num_decays=0)
    assert int(info.num_epochs) - 1 - int(info.best_epoch) == 2
    assert bool(info.converged)


def test_no_rows_but_a_few():
    # One row, fewer rows than a batch, and two rows: the optimum is exact.
    for num_rows in (1, 2, 7):
        params, info = run(
            sims=linear_data(num_rows, noise=0.0), batch_size=50, max_epochs=200
        )
        found = losses(info)
        assert np.all(np.isfinite(found)), num_rows
        assert float(info.best_loss) == found.min() < 0.1 * found[0], num_rows
        assert np.all(np.isfinite(params.net["w"]))


def test_one_row_trains_a_posterior():
    theta = np.ones(1)
    sims = sj.make_simulations(theta, theta[:, None])
    params, info = run(sims=sims, estimator=NPE, max_epochs=20)
    assert np.all(np.isfinite(losses(info)))
    draws = sj.infer(NPE, params, theta[:1]).sample(jax.random.key(1), 4)
    assert np.all(np.isfinite(draws))


def test_two_rows_one_held_out():
    _, info = run(sims=linear_data(2), validation_fraction=0.5, max_epochs=5)
    assert np.all(np.isfinite(losses(info)))
    assert not np.array_equal(losses(info), np.asarray(info.train_loss)[:5])


def test_at_least_one_row_is_trained_on():
    # The largest share below 1 that a user can write.
    fraction = float(np.nextafter(1.0, 0.0))
    params, info = run(validation_fraction=fraction, max_epochs=3)
    assert np.all(np.isfinite(info.train_loss[:3]))
    assert np.any(params.net["w"] != 0)


def test_failed_rows_are_left_out():
    # Not from make_simulations: the weight of a failed row is 1.
    theta = np.random.default_rng(0).normal(size=50)
    x = theta[:, None].copy()
    x[:3] = np.nan
    raw = sj.Simulations(theta, x, np.ones(50))
    params, info = run(sims=raw, estimator=NPE, max_epochs=20)
    assert np.all(np.isfinite(losses(info)))
    assert int(info.num_skipped) == 0
    clean = sj.make_simulations(theta, x)
    assert_same_bits((params, info), run(sims=clean, estimator=NPE, max_epochs=20))


# What is refused --------------------------------------------------------------


@pytest.mark.parametrize("weight", [np.zeros(5), None])
def test_simulations_without_weight_are_refused(weight):
    x = np.full((5, 2), np.nan if weight is None else 0.0)
    with pytest.raises(ValueError, match="^all 5 simulations have weight 0"):
        sj.train(jax.random.key(0), LINEAR, sj.make_simulations(np.zeros(5), x, weight))


@pytest.mark.parametrize(
    "key", [0, None, np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32)]
)
def test_raw_keys_are_refused(key):
    with pytest.raises(TypeError, match="^key must be a typed PRNG key"):
        sj.train(key, LINEAR, linear_data())


def test_batches_of_keys_are_refused():
    with pytest.raises(TypeError, match="^key must be one PRNG key"):
        sj.train(jax.random.split(jax.random.key(0), 2), LINEAR, linear_data())


ABSURD = [
    ("learning_rate", 0.0, ValueError),
    ("learning_rate", -1e-3, ValueError),
    ("learning_rate", np.nan, ValueError),
    ("learning_rate", np.inf, ValueError),
    ("learning_rate", "fast", (TypeError, ValueError)),
    ("learning_rate", np.ones(2), (TypeError, ValueError)),
    ("weight_decay", -0.1, ValueError),
    ("weight_decay", np.nan, ValueError),
    ("weight_decay", np.inf, ValueError),
    ("batch_size", 0, ValueError),
    ("batch_size", -5, ValueError),
    ("batch_size", 1.5, TypeError),
    ("batch_size", True, TypeError),
    ("max_epochs", 0, ValueError),
    ("max_epochs", 10.0, TypeError),
    ("max_epochs", None, TypeError),
    ("validation_fraction", -0.1, ValueError),
    ("validation_fraction", 1.0, ValueError),
    ("validation_fraction", 20, ValueError),
    ("validation_fraction", np.nan, ValueError),
    ("patience", 0, ValueError),
    ("patience", 2.5, TypeError),
    ("num_decays", -1, ValueError),
    ("num_decays", 1.0, TypeError),
    ("optimizer", "adam", TypeError),
    ("optimizer", optax.adam, TypeError),
    ("optimizer", 1e-3, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), ABSURD)
def test_absurd_settings_are_refused_by_name(name, value, error):
    with pytest.raises(error, match=f"^{name} must"):
        sj.train(jax.random.key(0), LINEAR, linear_data(), **{name: value})


def test_whole_numbers_of_numpy_are_taken():
    _, info = run(max_epochs=np.int64(3), batch_size=np.uint16(10), patience=np.int8(2))
    assert int(info.num_epochs) == 3


def test_arguments_in_another_order_are_refused():
    key, sims = jax.random.key(0), linear_data()
    with pytest.raises(TypeError, match="^key must be a typed PRNG key"):
        sj.train(LINEAR, key, sims)
    with pytest.raises(TypeError, match="type Estimator, got Simulations"):
        sj.train(key, sims, LINEAR)
    with pytest.raises(TypeError, match="^sims must be .* got ArrayImpl"):
        sj.train(key, LINEAR, sims.theta)
    with pytest.raises(TypeError, match="^sims must be .* got tuple"):
        sj.train(key, LINEAR, (sims.theta, sims.x))
    with pytest.raises(TypeError, match="training-free"):
        sj.train(key, LINEAR._replace(loss=None), sims)
    with pytest.raises(ValueError, match="theta: 64, x: 63"):
        sj.train(key, LINEAR, sims._replace(x=sims.x[1:]))


# Transformations and compilation ----------------------------------------------


def test_vmap_over_keys_equals_single_runs():
    sims = linear_data()
    keys = jax.random.split(jax.random.key(5), 3)

    def go(key):
        return sj.train(key, LINEAR, sims, max_epochs=6, learning_rate=3e-2)

    many = jax.vmap(go)(keys)
    for i, key in enumerate(jax.random.clone(keys)):
        with pytest.warns(sj.SbijaxWarning, match="still falling"):
            one = sj.train(
                key, LINEAR, sims, max_epochs=6, learning_rate=3e-2, progress=False
            )
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)
    assert len(np.unique(many[1].best_loss)) == 3


def test_a_traced_run_is_silent_and_writes_nothing(capsys, tmp_path):
    @jax.jit
    def go(sims, rate):
        return sj.train(
            jax.random.key(0), LINEAR, sims, max_epochs=2, learning_rate=rate
        )

    sims = linear_data()
    _, info = go(sims, 1e-2)
    _, slower = jax.vmap(go, (None, 0))(sims, jnp.array([1e-4, 1e-2]))
    np.testing.assert_allclose(slower.best_loss[1], info.best_loss, rtol=1e-4)
    assert slower.best_loss[0] > slower.best_loss[1]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="traced .* cannot write a checkpoint"):
        jax.jit(
            lambda sims: sj.train(
                jax.random.key(0), LINEAR, sims, checkpoint=tmp_path / "run"
            )
        )(sims)
    assert not list(tmp_path.iterdir())


def test_second_call_does_not_retrace(one_epoch_at_a_time):
    calls = []

    def loss(params, key, batch):
        calls.append(None)
        return squared_error(params, key, batch)

    counting = estimator_of(loss)
    fit(
        jax.random.key(0),
        counting,
        linear_data(),
        config=TrainConfig(max_epochs=4),
        learning_rate=1e-2,
    )
    # As often as one program needs it: segments of a run share it.
    once = len(calls)
    assert once > 0
    run(0, estimator=counting, max_epochs=4, learning_rate=1e-2)
    assert len(calls) <= 2 * once
    before = len(calls)
    run(1, linear_data(seed=1), counting, max_epochs=4, learning_rate=5e-3)
    run(2, estimator=counting, max_epochs=np.int64(4), weight_decay=0.3)
    host = jax.tree.map(np.asarray, linear_data(seed=2))
    run(3, host, counting, max_epochs=4)
    assert len(calls) == before
    run(4, linear_data(65), counting, max_epochs=4)
    assert len(calls) > before


# Ctrl-C -----------------------------------------------------------------------


def interrupt(monkeypatch, name, *, after, error=KeyboardInterrupt):
    """Let a function of the module work `after` times, then fail."""
    work, calls = getattr(train_module, name), []

    def wrapper(*args, **kwargs):
        calls.append(None)
        if len(calls) > after:
            raise error
        return work(*args, **kwargs)

    monkeypatch.setattr(train_module, name, wrapper)


def test_ctrl_c_between_epochs_returns_the_best_so_far(
    monkeypatch, one_epoch_at_a_time
):
    expected, expected_info = run(max_epochs=4)
    interrupt(monkeypatch, "run_epochs", after=4)
    with pytest.warns(sj.SbijaxWarning, match="interrupted after 4 epochs") as record:
        params, info = sj.train(
            jax.random.key(0),
            LINEAR,
            linear_data(),
            learning_rate=3e-2,
            progress=False,
        )
    assert len(record) == 1
    assert record[0].filename == __file__
    assert_same_bits(params, expected)
    assert int(info.num_epochs) == 4
    assert not bool(info.converged)
    assert_same_bits(losses(info), losses(expected_info))


def test_ctrl_c_in_the_progress_bar_returns_the_best_so_far(
    monkeypatch, one_epoch_at_a_time
):
    expected, _ = run(max_epochs=3)
    interrupt(monkeypatch, "_show", after=2)
    with pytest.warns(sj.SbijaxWarning, match="interrupted after 3 epochs"):
        params, info = sj.train(
            jax.random.key(0), LINEAR, linear_data(), learning_rate=3e-2
        )
    assert int(info.num_epochs) == 3
    assert_same_bits(params, expected)


def test_ctrl_c_after_the_best_epoch_returns_that_one(monkeypatch, one_epoch_at_a_time):
    # The loss rises from the second epoch on.
    rising = estimator_of(
        lambda params, key, batch: jnp.sum(params.net["w"] * params.net["sign"]),
        {"w": jnp.zeros(1), "sign": jnp.zeros(1)},
    )
    saddle = {"learning_rate": 1e-2, "optimizer": optax.sgd(-0.01)}
    best, best_info = run(estimator=rising, max_epochs=1, **saddle)
    interrupt(monkeypatch, "run_epochs", after=5)
    params, info = run(estimator=rising, **saddle)
    assert int(info.num_epochs) == 5
    assert int(info.best_epoch) == int(best_info.best_epoch) == 0
    assert_same_bits(params, best)


@pytest.mark.parametrize("name", ["run_epochs", "init_state"])
def test_ctrl_c_before_the_first_epoch_is_raised(monkeypatch, name):
    interrupt(monkeypatch, name, after=0)
    with pytest.raises(KeyboardInterrupt):
        sj.train(jax.random.key(0), LINEAR, linear_data(), progress=False)


def test_other_errors_are_raised(monkeypatch, one_epoch_at_a_time):
    interrupt(monkeypatch, "run_epochs", after=3, error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        sj.train(jax.random.key(0), LINEAR, linear_data(), progress=False)


# Progress ---------------------------------------------------------------------


def test_no_progress_prints_nothing(capfd):
    run(max_epochs=5)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_progress_shows_both_losses(capsys, one_epoch_at_a_time):
    _, info = run(max_epochs=5, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    # The last line shows the last epoch.
    last = captured.err.rstrip("\n").split("\r")[-1]
    assert "5/5" in last
    assert f"train {float(info.train_loss[4]):.3f}" in last
    assert f"validation {float(info.val_loss[4]):.3f}" in last
    assert f"(best {float(info.best_loss):.3f} at {int(info.best_epoch)})" in last


def test_the_bar_ends_where_training_stops(capsys):
    _, info = run(patience=1, num_decays=0, progress=True)
    num = int(info.num_epochs)
    assert num < 1000
    assert f"{num}/{num}" in capsys.readouterr().err.split("\r")[-1]


# What is said -----------------------------------------------------------------


def messages_of(key_seed=0, sims=None, estimator=LINEAR, **settings):
    settings = {"progress": False} | settings
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        sj.train(
            jax.random.key(key_seed),
            estimator,
            linear_data() if sims is None else sims,
            **settings,
        )
    assert all(entry.category is sj.SbijaxWarning for entry in record)
    assert all(entry.filename == __file__ for entry in record)
    return [str(entry.message) for entry in record]


def test_a_good_run_says_nothing():
    assert messages_of(learning_rate=3e-2) == []


def test_many_failed_rows_are_said():
    weight = np.ones(1000)
    weight[:100] = 0.0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    theta = x @ np.array([1.0, -0.5]) + rng.normal(size=1000)
    settings = {"learning_rate": 3e-2, "batch_size": 200}
    sims = sj.make_simulations(theta, x, weight)
    assert messages_of(sims=sims, **settings) == []
    weight[100] = 0.0
    sims = sj.make_simulations(theta, x, weight)
    (message,) = messages_of(sims=sims, **settings)
    assert message.startswith("101 of 1,000 simulations have weight 0")


def test_a_run_that_was_cut_short_is_said():
    (message,) = messages_of(max_epochs=2, learning_rate=3e-2)
    assert "used all 2 epochs" in message
    assert "raise max_epochs" in message


def test_a_plateau_is_said():
    constant = estimator_of(
        lambda params, key, batch: 1.5 + 0.0 * params.net["bias"] * batch.theta[0]
    )
    (message,) = messages_of(estimator=constant, patience=2)
    assert "stopped on a plateau" in message
    assert "(1.500)" in message


def test_a_network_that_learns_by_heart_is_said():
    # One parameter for every row, which the other rows cannot use.
    size = 64
    rng = np.random.default_rng(0)
    theta = rng.normal(size=size) * 3.0
    x = np.column_stack([np.arange(size), np.ones(size)])

    def loss(params, key, batch):
        recalled = params.net["by_heart"][batch.x[:, 0].astype(int)]
        residual = batch.theta - recalled - params.net["bias"]
        return jnp.sum(batch.weight * residual**2) / jnp.sum(batch.weight)

    by_heart = estimator_of(loss, {"by_heart": jnp.zeros(size), "bias": jnp.array(0.5)})
    (message,) = messages_of(
        sims=sj.make_simulations(theta, x),
        estimator=by_heart,
        learning_rate=1.0,
        batch_size=4,
        validation_fraction=0.5,
    )
    assert message.startswith("the network overfits: at the best epoch")


def test_a_loss_that_is_never_finite_is_said():
    broken = estimator_of(lambda params, key, batch: jnp.nan * params.net["bias"])
    first, second = messages_of(estimator=broken, patience=1)
    assert first.startswith("the loss was never finite")
    assert second.startswith("8 steps had non-finite gradients")


def info_of(train, val, *, converged=True, num_skipped=0, max_epochs=10):
    """The account of a run with these losses."""
    val = np.array(val, float)
    fill = np.full(max_epochs - len(val), np.nan)
    finite = np.where(np.isfinite(val), val, np.inf)
    return TrainInfo(
        train_loss=jnp.asarray(np.append(train, fill)),
        val_loss=jnp.asarray(np.append(val, fill)),
        num_epochs=jnp.asarray(len(val)),
        best_epoch=jnp.asarray(np.argmin(finite)),
        best_loss=jnp.asarray(finite.min()),
        converged=jnp.asarray(converged),
        num_skipped=jnp.asarray(num_skipped),
    )


FALLING = [3.0, 2.0, 1.5, 1.2]
LEVELLED = [3.0, 2.0, 1.5, 1.3, 1.2, 1.12, 1.07, 1.03, 1.01, 1.001, 1.0]


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (info_of(FALLING, FALLING), []),
        (info_of(FALLING, FALLING, converged=False), []),  # fewer than max_epochs
        (info_of(FALLING * 2, FALLING * 2, max_epochs=8), []),
        (
            info_of(FALLING, FALLING, converged=False, max_epochs=4),
            ["used all 4 epochs"],
        ),
        (  # levelled off: the last tenth won less than a hundredth
            info_of(LEVELLED, LEVELLED, converged=False, max_epochs=11),
            [],
        ),
        (info_of(FALLING, [1.0, 1.0, 1.1, 1.2]), ["on a plateau"]),
        (info_of([3.0, 1.0, 0.5], [3.0, 2.5, 2.8]), ["overfits.* is 1.50 above"]),
        (info_of([3.0, 2.0, 1.0], [3.0, 2.9, 3.0]), []),  # a gap below one nat
        (info_of([9.0, 1.0, 0.5], [9.0, 2.5, 2.8]), []),  # a gap below what was won
        (info_of([np.nan] * 3, [np.nan] * 3), ["never finite"]),
        (info_of(FALLING, FALLING, num_skipped=3), ["^3 steps had non-finite"]),
        (
            info_of(
                [3.0, 0.5], [3.0, 2.9], converged=False, num_skipped=1, max_epochs=2
            ),
            ["used all 2", "overfits.* is 2.40", "^1 steps"],
        ),
    ],
)
def test_report(info, words):
    config = TrainConfig(max_epochs=len(info.val_loss))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        report_run(info, config)
    messages = [str(entry.message) for entry in record]
    assert len(messages) == len(words)
    for message, pattern in zip(messages, words, strict=True):
        with pytest.raises(sj.SbijaxWarning, match=pattern):
            raise sj.SbijaxWarning(message)
