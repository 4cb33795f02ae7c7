"""Checkpoints: a run that was cut off ends with the same bits."""

import gc
import importlib
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import sbijax as sj
from sbijax import densities, networks
from tests.helpers import assert_same_bits, linear_data

train_module = importlib.import_module("sbijax.training.train")


def squared_error(params, key, batch):
    residual = batch.theta - batch.x @ params.net["w"] - params.net["bias"]
    noise = 0.01 * jax.random.normal(key)  # the loss key counts as well
    return (1 + noise) * jnp.sum(batch.weight * residual**2) / jnp.sum(batch.weight)


def make_linear(loss=squared_error, start=0.0):
    """A new estimator, as another process would make it."""

    def init(key, sims):
        w_key, bias_key = jax.random.split(key)
        net = {
            "w": start + jax.random.normal(w_key, (2,)),
            "bias": jax.random.normal(bias_key, ()),
        }
        example = jax.tree.map(lambda leaf: leaf[0], sims)
        return sj.Params(net, sj.Stats(example, {"scale": jnp.ones(2)}, {}))

    return sj.Estimator(init, loss, None, None)


def make_npe(distribution=None):
    def small(num_outputs):
        return networks.mlp(num_outputs, hidden_sizes=(4,))

    return sj.make_npe(
        sj.make_prior(distribution or dist.Normal(0.0, 1.0)),
        density=densities.mdn(num_components=1, network=small),
        embedding=networks.flatten(),
    )


def make_layers(activation=jnp.tanh, width=4, out=1.0):
    """Regression by one hidden layer, whose output weights all start at `out`."""

    def init(key, sims):
        net = {
            "hidden": jax.random.normal(key, (2, width)),
            "out": jnp.full(width, out),
        }
        example = jax.tree.map(lambda leaf: leaf[0], sims)
        return sj.Params(net, sj.Stats(example, {}, {}))

    def loss(params, key, batch):
        hidden = activation(batch.x @ params.net["hidden"])
        residual = batch.theta - hidden @ params.net["out"]
        return jnp.sum(batch.weight * residual**2) / jnp.sum(batch.weight)

    return sj.Estimator(init, loss, None, None)


LINEAR = make_linear()


SETTINGS = {"learning_rate": 0.1, "max_epochs": 12, "patience": 2, "num_decays": 3}


def run(folder=None, *, seed=0, sims=None, estimator=LINEAR, key=None, **settings):
    """Train without a word, with or without a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.SbijaxWarning)
        return sj.train(
            jax.random.key(seed) if key is None else key,
            estimator,
            linear_data() if sims is None else sims,
            checkpoint=folder,
            **({"progress": False} | SETTINGS | settings),
        )


@pytest.fixture(autouse=True)
def one_epoch_at_a_time(monkeypatch):
    monkeypatch.setattr(train_module, "_SECONDS_PER_CALL", 0.0)


class Interrupted:
    """Lets a run work for some epochs, then fails."""

    def __init__(self, after, error=KeyboardInterrupt):
        self.after, self.error, self.num_epochs = after, error, 0
        self.work = train_module.run_epochs

    def __call__(self, *args, **kwargs):
        if self.num_epochs == self.after:
            raise self.error
        self.num_epochs += 1
        return self.work(*args, **kwargs)


def cut_off(monkeypatch, after, error=KeyboardInterrupt):
    stub = Interrupted(after, error)
    monkeypatch.setattr(train_module, "run_epochs", stub)
    return stub


# The same bits ----------------------------------------------------------------


def test_an_interrupted_run_ends_with_the_same_bits(monkeypatch, tmp_path):
    expected = run()
    num_epochs = int(expected[1].num_epochs)
    assert num_epochs > 7
    work, again = train_module.run_epochs, make_linear()
    for after in (3, 2):
        cut_off(monkeypatch, after)
        _, info = run(tmp_path / "run", estimator=again)
        monkeypatch.setattr(train_module, "run_epochs", work)
        assert not bool(info.converged)
    assert int(info.num_epochs) == 5
    last = cut_off(monkeypatch, 1000)
    found = run(tmp_path / "run", estimator=again)
    assert_same_bits(found, expected)
    assert last.num_epochs == num_epochs - 5


def test_a_run_with_checkpoints_is_the_run_without(monkeypatch, tmp_path):
    monkeypatch.setattr(train_module, "_SECONDS_PER_CHECKPOINT", 0.0)
    expected = run()
    assert_same_bits(run(tmp_path / "run"), expected)
    # Old ones are removed.
    steps = [p.name for p in (tmp_path / "run").iterdir() if p.name.isdigit()]
    assert len(steps) <= 2
    assert str(expected[1].num_epochs) in steps


def test_a_run_that_was_killed_ends_with_the_same_bits(monkeypatch, tmp_path):
    # No time to write anything more: the checkpoints of every epoch remain.
    expected, work = run(), train_module.run_epochs
    monkeypatch.setattr(train_module, "_SECONDS_PER_CHECKPOINT", 0.0)
    cut_off(monkeypatch, 4, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run")
    monkeypatch.setattr(train_module, "run_epochs", work)
    last = cut_off(monkeypatch, 1000)
    assert_same_bits(run(tmp_path / "run"), expected)
    assert last.num_epochs == int(expected[1].num_epochs) - 4


def test_a_run_that_was_killed_before_its_first_checkpoint(monkeypatch, tmp_path):
    cut_off(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert_same_bits(run(tmp_path / "run"), run())


def test_ctrl_c_right_after_resuming(monkeypatch, tmp_path):
    work = train_module.run_epochs
    cut_off(monkeypatch, 3)
    before = run(tmp_path / "run")
    monkeypatch.setattr(train_module, "run_epochs", work)
    cut_off(monkeypatch, 0)
    with pytest.warns(sj.SbijaxWarning, match="interrupted after 3 epochs"):
        found = sj.train(
            jax.random.key(0),
            LINEAR,
            linear_data(),
            checkpoint=tmp_path / "run",
            progress=False,
            **SETTINGS,
        )
    assert_same_bits(found, before)


def test_a_posterior_resumes_with_the_same_bits(monkeypatch, tmp_path):
    # Nested parameters, statistics in records, another kind of key.
    theta = np.random.default_rng(0).normal(size=40)
    sims = sj.make_simulations(theta, {"a": theta, "b": (theta[:, None] ** 2,)})

    npe = make_npe()

    def go(folder=None, npe=npe):
        key = jax.random.key(3, impl="rbg")
        return run(folder, key=key, sims=sims, estimator=npe, max_epochs=5)

    expected, work = go(), train_module.run_epochs
    cut_off(monkeypatch, 2)
    go(tmp_path / "run")
    monkeypatch.setattr(train_module, "run_epochs", work)
    found = go(tmp_path / "run")
    assert type(found[0].stats) is sj.Stats
    assert_same_bits(found, expected)
    with pytest.raises(ValueError, match="another estimator of the same shapes"):
        go(tmp_path / "run", make_npe(dist.Normal(0.0, 2.0)))  # another prior


def test_an_optimizer_that_is_built_again(monkeypatch, tmp_path):
    first, work = optax.adamw(1e-2), train_module.run_epochs
    expected = run(optimizer=first)
    cut_off(monkeypatch, 3)
    run(tmp_path / "run", optimizer=first)
    monkeypatch.setattr(train_module, "run_epochs", work)
    assert_same_bits(run(tmp_path / "run", optimizer=optax.adamw(1e-2)), expected)


def test_a_finished_run_returns_at_once(monkeypatch, tmp_path):
    expected = run(tmp_path / "run")
    again = cut_off(monkeypatch, 0, AssertionError("an epoch is run again"))
    assert_same_bits(run(tmp_path / "run", estimator=make_linear()), expected)
    assert again.num_epochs == 0


def test_folders_of_every_kind(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = run("some/new folder", max_epochs=4)
    assert (tmp_path / "some" / "new folder").is_dir()
    cut_off(monkeypatch, 0, AssertionError("an epoch is run again"))
    found = run(pathlib.Path("some/new folder"), max_epochs=4)
    assert_same_bits(found, expected)


# Another run ------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The checkpoint of a short run of `LINEAR`."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    run(folder, max_epochs=2)
    return folder


def doubled(params, key, batch):
    return 2.0 * squared_error(params, key, batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "another key"),
        (
            {"key": jax.random.key(0, impl="rbg")},
            r"key<fry>\[\], expected .key key<rbg>",
        ),
        ({"sims": linear_data(seed=1)}, "other simulations"),
        ({"sims": linear_data(63)}, "another estimator|other simulations"),
        (
            {"sims": linear_data()._replace(weight=jnp.full(64, 0.5))},
            "other simulations",
        ),
        ({"learning_rate": 0.2}, r"learning_rate or weight_decay: \[0\.10*\d*, "),
        ({"weight_decay": 0.3}, "learning_rate or weight_decay"),
        ({"batch_size": 7}, "configuration: batch_size=None there, 7 here"),
        ({"max_epochs": 3}, "configuration: max_epochs=2 there, 3 here"),
        ({"patience": 5}, "configuration: patience=2 there, 5 here"),
        ({"num_decays": 0}, "configuration: num_decays=3 there, 0 here"),
        (
            {"validation_fraction": 0.25},
            "configuration: validation_fraction=0.1 there, 0.25 here",
        ),
        ({"optimizer": optax.sgd(0.1)}, "another (optimizer|estimator)"),
        ({"estimator": make_linear(start=1.0)}, "another estimator of the same"),
        ({"estimator": make_linear(doubled)}, "another estimator of the same"),
    ],
    ids=[
        *("key", "key kind", "sims", "fewer sims", "weights", "rate", "decay"),
        *("batch", "epochs", "patience", "decays", "fraction", "optimizer"),
        *("start", "loss"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(short_run, change, words):
    change = {"max_epochs": 2} | change
    if "key" in change:
        change["key"] = jax.random.clone(change["key"])
    with pytest.raises(ValueError, match=f"was made with .*({words})") as error:
        run(short_run, **change)
    assert str(short_run) in str(error.value)
    assert "Use another folder, or delete this one" in str(error.value)


def test_a_checkpoint_is_as_it_was_after_a_refusal(short_run):
    expected = run(max_epochs=2)
    with pytest.raises(ValueError, match="another key"):
        run(short_run, seed=1, max_epochs=2)
    assert_same_bits(run(short_run, max_epochs=2), expected)


def test_another_optimizer_is_refused(tmp_path):
    run(tmp_path / "run", max_epochs=1, optimizer=optax.sgd(0.1))
    for other in (optax.sgd(0.2), optax.adam(0.1), None):
        with pytest.raises(ValueError, match="another (optimizer|estimator)"):
            run(tmp_path / "run", max_epochs=1, optimizer=other)


def test_a_checkpoint_of_another_estimator_is_refused(tmp_path):
    run(tmp_path / "run", estimator=make_layers(), max_epochs=1)
    equal = "another estimator of the same shapes"
    for other, words in (
        (
            {"width": 5},
            r"another estimator: .*float32\[2,4\], expected .*float32\[2,5\]",
        ),
        ({"out": 2.0}, equal),
        ({"activation": jax.nn.relu}, equal),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "run", estimator=make_layers(**other), max_epochs=1)


def test_another_activation_behind_an_output_of_zeros_is_refused(tmp_path):
    # Where the output layer starts at zero, as in flows, the first loss is the
    # same for every activation; the runs differ all the same.
    run(tmp_path / "run", estimator=make_layers(out=0.0), max_epochs=1)
    other = make_layers(jax.nn.relu, out=0.0)
    with pytest.raises(ValueError, match="another estimator of the same shapes"):
        run(tmp_path / "run", estimator=other, max_epochs=1)


# Damage -----------------------------------------------------------------------


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("notes")
    with pytest.raises(NotADirectoryError, match="must be a folder, but .* is a file"):
        run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "notes"


def test_a_folder_with_other_things_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "figures").mkdir()
    expected = run(tmp_path, max_epochs=2)
    assert_same_bits(run(tmp_path, max_epochs=2), expected)
    assert (tmp_path / "notes.txt").read_text() == "notes"


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def damage_and_resume(short_run, tmp_path, damage):
    """What is said when each file in turn is damaged; nothing where it is not used."""
    expected = run(short_run, max_epochs=2)
    names = [path.relative_to(short_run) for path in files_of(short_run)]
    messages = {}
    for i, name in enumerate(names):
        folder = tmp_path / f"run_{i}"
        shutil.copytree(short_run, folder)
        damage(folder / name)
        try:
            found = run(folder, max_epochs=2)
        except ValueError as error:
            messages[str(name)] = str(error)
        else:
            assert_same_bits(found, expected)
    return messages


# orbax abandons its other reads when one fails, and python says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
        lambda path: path.write_text("[1]"),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "random", "json", "deleted"],
)
def test_a_damaged_checkpoint_is_one_clear_error(short_run, tmp_path, damage):
    messages = damage_and_resume(short_run, tmp_path, damage)
    assert messages
    for name, message in messages.items():
        assert message.startswith(f"the checkpoint in {tmp_path}"), name
        assert "is damaged" in message, name
        assert "Use another folder, or delete this one" in message, name
    gc.collect()


def test_a_checkpoint_of_a_later_format(short_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short_run, folder)
    (identity,) = [
        p
        for p in files_of(folder / "2" / "identity")
        if '"format"' in p.read_text(errors="ignore")
    ]
    text = identity.read_text()
    assert '"format":2' in text.replace(" ", "")
    identity.write_text(text.replace(" ", "").replace('"format":2', '"format":3'))
    with pytest.raises(ValueError, match="has format 3, this version reads 2"):
        run(folder, max_epochs=2)
