"""Training on simulations that exceed memory: which rows, which bits, what memory."""

import importlib
import itertools
import threading
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import sbijax as sj
from sbijax import densities, networks
from sbijax.training import TrainConfig, reading, stream
from tests.helpers import assert_same_bits, linear_data

train_module = importlib.import_module("sbijax.training.train")


class Lazy:
    """Rows of simulations, and a record of the slices that were asked for."""

    def __init__(self, sims, fail_after=None):
        self.sims = jax.tree.map(np.asarray, sims)
        self.slices, self.fail_after = [], fail_after

    def __len__(self):
        return len(self.sims.weight)

    def __getitem__(self, rows):
        if len(self.slices) == self.fail_after:
            raise OSError("the disk is gone")
        self.slices.append((rows.start, rows.stop))
        return jax.tree.map(lambda leaf: leaf[rows], self.sims)


def estimator_of(loss, net):
    """An estimator with a loss and no posterior."""

    def init(key, sims):
        example = jax.tree.map(lambda leaf: leaf[0], sims)
        return sj.Params(net, sj.Stats(example, {"mean": jnp.mean(sims.theta)}, {}))

    return sj.Estimator(init, loss, None, None)


def squared_error(params, key, batch):
    residual = batch.theta - batch.x @ params.net["w"] - params.net["bias"]
    noise = 0.01 * jax.random.normal(key)  # the loss key counts as well
    total = jnp.sum(batch.weight)
    scale = (1 + noise) / jnp.where(total > 0, total, 1.0)
    return scale * jnp.sum(batch.weight * residual**2)


LINEAR = estimator_of(squared_error, {"w": jnp.zeros(2), "bias": jnp.zeros(())})
SETTINGS = {"learning_rate": 3e-2, "max_epochs": 8, "progress": False}


def run(sims, estimator=LINEAR, **settings):
    """Train without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.SbijaxWarning)
        return sj.train(jax.random.key(0), estimator, sims, **(SETTINGS | settings))


def open_run(sims, estimator, buffer_size, config):
    """What `train` makes of a source: the state, the rows held out, the stream."""
    like = reading.read_one(sims)
    net_key, split_key, train_key = jax.random.split(jax.random.key(0), 3)
    opened, config = stream.open_stream(split_key, sims, like, buffer_size, config)
    state, held_out = stream.start_stream(
        net_key,
        train_key,
        stream.read_sample(opened),
        1e-2,
        0.0,
        num_held_out=opened.plan.num_held_out,
        estimator=estimator,
        config=config,
    )

    def epochs(show=lambda num_seen: None):
        return stream.stream_epochs(
            state, held_out, opened, estimator=estimator, config=config, show=show
        )

    return epochs, opened, held_out, config


# The plan ---------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("buffer_size", [1, 2, 7, 64, 100, 640, 999])
@pytest.mark.parametrize("num_rows", [1000, 1001, 1499])
def test_rows_are_shared_out_without_a_rest(num_rows, buffer_size, fraction):
    batch_size = min(50, buffer_size)
    plan = reading.make_plan(
        (3, 4),
        num_rows,
        buffer_size=buffer_size,
        validation_fraction=fraction,
        batch_size=batch_size,
    )

    def rows_of(slices):
        return np.concatenate([np.arange(*cut) for cut in slices])

    assert plan.num_held_out == min(int(fraction * num_rows), buffer_size // 2)
    sample = rows_of(plan.sample)
    assert len(sample) == max(1, buffer_size // 2) >= plan.num_held_out
    held_out = sample[: plan.num_held_out]
    assert plan.capacity <= buffer_size
    orders = []
    for epoch in range(2):
        groups = [rows_of(slices) for slices in plan.groups(epoch)]
        sizes = np.array([len(group) for group in groups])
        assert np.array_equal(np.cumsum(sizes), plan.cuts[1:])
        assert np.all(sizes[:-1] % batch_size == 0)
        assert np.ptp(-(-sizes // batch_size)) <= 1
        orders.append(np.concatenate(groups))
        every = np.sort(np.concatenate([orders[-1], held_out]))
        assert np.array_equal(every, np.arange(num_rows))
    if len(plan.cuts) > 2:
        assert not np.array_equal(*orders)


# Which rows are used ----------------------------------------------------------


def count_uses(params, key, batch):
    """Its gradient is minus the number of times each row is in the batch.

    Its value is the mean of theta, which tells what was scored.
    """
    counts = batch.weight > 0
    uses = jnp.where(counts, params.net["uses"][batch.theta.astype(int)], 0.0)
    total = jnp.sum(uses)
    mean = jnp.sum(batch.weight * batch.theta) / jnp.maximum(jnp.sum(batch.weight), 1)
    return mean - total + jax.lax.stop_gradient(total)


def uses_of_rows(x, buffer_size, num_epochs=3, validation_fraction=0.1):
    size = len(x)
    raw = sj.Simulations(np.arange(size, dtype=float), x, np.ones(size))
    config = TrainConfig(
        batch_size=50,
        max_epochs=num_epochs,
        validation_fraction=validation_fraction,
        patience=100,
        optimizer=optax.sgd(1.0),
    )
    counter = estimator_of(count_uses, {"uses": jnp.zeros(size)})
    epochs, opened, _, _ = open_run(Lazy(raw), counter, buffer_size, config)
    *_, state = epochs()
    assert int(state.epoch) == num_epochs
    return np.asarray(state.net.tree()["uses"]), opened.plan, state


def test_every_other_row_is_used_exactly_once_an_epoch():
    uses, plan, state = uses_of_rows(np.zeros(1000), 300)
    assert plan.num_held_out == 100
    assert len(plan.cuts) - 1 == 3
    values, counts = np.unique(uses, return_counts=True)
    assert values.tolist() == [0, 3]
    assert counts.tolist() == [100, 900]
    # The others are those that were scored, and the losses are means.
    held_out = np.flatnonzero(uses == 0)
    np.testing.assert_allclose(state.val_loss[:3], held_out.mean(), rtol=1e-5)
    trained = np.flatnonzero(uses > 0)
    np.testing.assert_allclose(state.train_loss[:3], trained.mean(), rtol=1e-5)


def test_only_the_last_batch_of_an_epoch_is_filled_up():
    uses, plan, state = uses_of_rows(np.zeros(1013), 300)
    trained = uses[uses > 0]
    assert len(trained) == 1013 - plan.num_held_out == 912
    assert np.all((trained >= 3) & (trained <= 6))
    assert trained.sum() == 3 * 950 == 50 * int(state.step)


def test_failed_rows_are_never_used():
    x = np.zeros(1000)
    x[::3] = np.nan
    uses, plan, state = uses_of_rows(x, 300)
    assert np.all(uses[::3] == 0)
    good = np.flatnonzero(np.isfinite(x))
    held_out = good[uses[good] == 0]
    assert len(held_out) == int(state.num_valid)
    np.testing.assert_allclose(state.val_loss[:3], held_out.mean(), rtol=1e-5)
    assert 0 < len(held_out) < plan.num_held_out


def test_nothing_is_held_out_on_demand():
    uses, plan, state = uses_of_rows(np.zeros(1000), 300, validation_fraction=0.0)
    assert plan.num_held_out == int(state.num_valid) == 0
    assert np.all(uses == 3)
    np.testing.assert_array_equal(state.val_loss, state.train_loss)


def test_padding_has_no_effect():
    config = TrainConfig(batch_size=50, max_epochs=2)
    sims = linear_data(700, weighted=True)
    epochs, opened, _, config = open_run(Lazy(sims), LINEAR, 300, config)
    start = next(epochs())
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:130], sims)

    def go(filling):
        def pad(leaf):
            rest = np.full((70, *leaf.shape[1:]), filling, leaf.dtype)
            return np.concatenate([leaf, rest])

        buffer = jax.tree.map(pad, rows)
        buffer.weight[130:] = 0.0
        state, *losses = stream.train_on_buffer(
            start, buffer, 0, estimator=LINEAR, config=config
        )
        return state._replace(key=None), *losses

    expected = go(0.0)
    assert int(expected[2]) == 3
    for filling in (np.nan, 1e30):
        assert_same_bits(go(filling), expected)


def test_every_buffer_of_every_epoch_has_its_own_random_numbers():
    config = TrainConfig(batch_size=50, max_epochs=2)
    sims = linear_data(400)
    epochs, opened, _, config = open_run(Lazy(sims), LINEAR, 200, config)
    start = next(epochs())
    buffer = jax.tree.map(lambda leaf: leaf[:200], sims)

    def loss_of(epoch, group):
        state = start._replace(epoch=jnp.asarray(epoch, start.epoch.dtype))
        return float(
            stream.train_on_buffer(
                state, buffer, group, estimator=LINEAR, config=config
            )[1]
        )

    losses = [loss_of(epoch, group) for epoch in range(2) for group in range(2)]
    assert len(set(losses)) == 4
    assert loss_of(0, 0) == losses[0]


# The result -------------------------------------------------------------------


def test_what_fits_is_trained_on_as_in_memory(tmp_path):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))

    def simulator(key, theta):
        return theta + jax.random.normal(key, (2,))

    sims = sj.simulate(jax.random.key(1), prior, simulator, 300, store=tmp_path / "s")
    stored = sj.open_simulations(tmp_path / "s")
    assert isinstance(stored, sj.LazySimulations)
    expected = run(sims)
    assert_same_bits(run(stored), expected)
    assert_same_bits(run(stored, buffer_size=300), expected)
    assert not np.array_equal(
        run(stored, buffer_size=299)[1].val_loss, expected[1].val_loss
    )


def test_it_finds_the_posterior():
    # theta ~ N(0, 1), x = theta + N(0, 1): theta | x ~ N(x / 2, 1 / 2).
    def small(num_outputs):
        return networks.mlp(num_outputs, hidden_sizes=(8,))

    npe = sj.make_npe(
        sj.make_prior(dist.Normal(0.0, 1.0)),
        density=densities.mdn(num_components=1, network=small),
        embedding=networks.flatten(),
    )
    rng = np.random.default_rng(0)
    size = 4_000
    theta = rng.normal(size=2 * size)
    x = theta + rng.normal(size=2 * size)
    # Sorted: runs of rows are as unlike each other as can be.
    order = np.argsort(theta[:size])
    sims = sj.make_simulations(theta[:size][order], x[:size][order])
    settings = {"learning_rate": 1e-2, "max_epochs": 30, "patience": 5}
    params, info = run(Lazy(sims), npe, buffer_size=1_000, **settings)
    in_memory, _ = run(sims, npe, **settings)
    fresh = jax.tree.map(jnp.asarray, (theta[size:], x[size:]))

    def log_probs(params):
        return jax.jit(jax.vmap(lambda t, x: npe.log_prob(params, t, x)))(*fresh)

    exact = dist.Normal(fresh[1] / 2, 0.5**0.5).log_prob(fresh[0])
    found = log_probs(params)
    # What a maximum-likelihood fit loses is the number of its parameters / 2N; and a
    # tenth of half a buffer, 50 rows, chooses among the epochs.
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params.net))
    allowed = num_params / (2 * size) + 1 / 50
    for other in (exact, log_probs(in_memory)):
        gap = np.asarray(other - found)
        assert gap.mean() < allowed + 3 * gap.std() / size**0.5
    assert np.isfinite(float(info.best_loss))


def test_a_store_larger_than_the_buffer(tmp_path):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))

    @sj.python_simulator
    def simulator(rng, theta):
        return theta + rng.normal(size=2) if theta < 1.0 else np.full(2, np.nan)

    with pytest.warns(sj.SbijaxWarning, match="of 500 simulations"):
        sims = sj.simulate(
            jax.random.key(1), prior, simulator, 500, store=tmp_path / "s"
        )
    stored = sj.open_simulations(tmp_path / "s")
    found = run(stored, buffer_size=200)
    assert_same_bits(found, run(Lazy(sims), buffer_size=200))
    with pytest.warns(sj.SbijaxWarning) as record:
        sj.train(jax.random.key(0), LINEAR, stored, buffer_size=200, **SETTINGS)
    first = str(record[0].message)
    assert "of 100 simulations, a sample of 500, have weight 0" in first
    assert all(entry.filename == __file__ for entry in record)


def test_nothing_is_traced_after_the_first_buffer():
    calls = []

    def loss(params, key, batch):
        calls.append(None)
        return squared_error(params, key, batch)

    counting = estimator_of(loss, LINEAR.init(None, linear_data(1)).net)
    config = TrainConfig(batch_size=50, max_epochs=4)
    epochs, opened, _, _ = open_run(Lazy(linear_data(1017)), counting, 300, config)
    assert len(set(np.diff(opened.plan.cuts).tolist())) > 1  # the last one is shorter
    seen, ends = [], []
    for _ in epochs(lambda num_seen: seen.append((num_seen, len(calls)))):
        ends.append(len(calls))
    num_groups = len(opened.plan.cuts) - 1
    assert len(seen) == 4 * num_groups
    assert seen[0][1] > 0
    assert len({count for _, count in seen[:num_groups]}) == 1
    assert {count for _, count in seen[num_groups:]} == {ends[0]}
    assert set(ends) == {ends[0]}
    rows = [num_seen for num_seen, _ in seen]
    assert rows == 4 * opened.plan.cuts[1:].tolist()
    before = len(calls)
    run(Lazy(linear_data(1017, seed=1)), counting, buffer_size=300, batch_size=50)
    once = len(calls) - before
    run(Lazy(linear_data(1017, seed=2)), counting, buffer_size=300, batch_size=50)
    assert len(calls) == before + once


# Going on ---------------------------------------------------------------------


def interrupt(monkeypatch, *, after):
    """Ctrl-C when an epoch is to be shown."""
    show, calls = train_module._show, []

    def wrapper(*args):
        calls.append(None)
        if len(calls) > after:
            raise KeyboardInterrupt
        show(*args)

    monkeypatch.setattr(train_module, "_show", wrapper)


def test_an_interrupted_run_ends_with_the_same_bits(monkeypatch, tmp_path):
    sims = linear_data(1017)
    settings = {"buffer_size": 300, "patience": 1, "num_decays": 5}
    expected = run(Lazy(sims), **settings)
    assert int(expected[1].num_epochs) == 8
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.warns(sj.SbijaxWarning, match="after 3 epochs") as record:
            _, info = sj.train(
                jax.random.key(0),
                LINEAR,
                Lazy(sims),
                checkpoint=tmp_path / "run",
                **(SETTINGS | settings),
            )
    assert record[0].filename == __file__
    assert int(info.num_epochs) == 3
    np.testing.assert_array_equal(info.val_loss[:3], expected[1].val_loss[:3])
    assert_same_bits(run(Lazy(sims), checkpoint=tmp_path / "run", **settings), expected)
    finished = Lazy(sims)
    again = run(finished, checkpoint=tmp_path / "run", **settings)
    assert_same_bits(again, expected)
    assert sum(b - a for a, b in finished.slices) < 300  # the sample, and no epoch


def test_a_checkpoint_of_another_reading_is_refused(tmp_path):
    sims = linear_data(1017)
    run(Lazy(sims), buffer_size=300, batch_size=50, checkpoint=tmp_path / "run")
    again = {"batch_size": 50, "checkpoint": tmp_path / "run"}
    with pytest.raises(ValueError, match="another buffer_size.*300.*there.*400.*here"):
        run(Lazy(sims), buffer_size=400, **again)
    with pytest.raises(ValueError, match="another number of simulations"):
        run(Lazy(linear_data(1016)), buffer_size=300, **again)
    with pytest.raises(ValueError, match="another number of simulations"):
        run(sims, **again)
    other = linear_data(1017, seed=1)
    with pytest.raises(ValueError, match="other (simulations|estimator)|another est"):
        run(Lazy(other), buffer_size=300, **again)


def test_an_error_of_reading_is_raised_and_loses_no_epoch(tmp_path):
    sims = linear_data(1017)
    whole = Lazy(sims)
    expected = run(whole, buffer_size=300)
    half = len(whole.slices) // 2
    with pytest.raises(OSError, match="the disk is gone"):
        run(Lazy(sims, half), buffer_size=300, checkpoint=tmp_path / "run")
    assert not any(t.name.startswith("sbijax-read") for t in threading.enumerate())
    again = Lazy(sims)
    found = run(again, buffer_size=300, checkpoint=tmp_path / "run")
    assert_same_bits(found, expected)
    assert len(again.slices) < 0.75 * len(whole.slices)
    with pytest.raises(OSError, match="the disk is gone"):
        run(Lazy(sims, 0), buffer_size=300)


# What is refused --------------------------------------------------------------


def test_lazy_simulations_cannot_be_traced():
    lazy = Lazy(linear_data(64))
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(TypeError, match=r"under jit or vmap. Load them, .*sims\[:\]"):
        jax.vmap(lambda key: sj.train(key, LINEAR, lazy))(keys)
    with pytest.raises(TypeError, match="under jit or vmap"):
        jax.jit(
            lambda rate: sj.train(jax.random.key(0), LINEAR, lazy, learning_rate=rate)
        )(0.1)
    assert lazy.slices == []


def altered(size, change):
    """A source whose slices from row `size` on are changed."""

    class Altered(Lazy):
        def __getitem__(self, rows):
            part = super().__getitem__(rows)
            return change(part) if rows.stop > size else part

    return Altered(linear_data(1000))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda part: part._replace(x=part.x[:, :1]),
            ValueError,
            r"other shapes than sims\[0:1\]: got .*x: float32\[9,1\].*expected .*"
            r"x: float32\[9,2\]",
        ),
        (
            lambda part: jax.tree.map(lambda leaf: leaf[1:], part),
            ValueError,
            r"theta: float32\[8\].*expected .*theta: float32\[9\]",
        ),
        (
            lambda part: part._replace(theta={"a": part.theta}),
            ValueError,
            r"got {theta: {a: float32\[9\]}",
        ),
        (
            lambda part: part._replace(x=part.x.astype(complex)),
            TypeError,
            "must hold real numbers",
        ),
        (
            lambda part: part._replace(weight=-part.weight),
            ValueError,
            "must be finite and not negative",
        ),
        (tuple, TypeError, "must be of type Simulations, got tuple"),
    ],
    ids=["shape", "rows", "structure", "dtype", "weight", "type"],
)
def test_slices_unlike_the_first_are_refused(change, error, words):
    with pytest.raises(error, match=words) as caught:
        run(altered(1, change), buffer_size=300)
    assert "sims[" in str(caught.value)


def test_sources_without_simulations_are_refused():
    with pytest.raises(ValueError, match="^there are no simulations: sims has 0 rows"):
        run(Lazy(jax.tree.map(lambda leaf: leaf[:0], linear_data(3))))
    failed = linear_data(1000)._replace(weight=np.zeros(1000))
    with pytest.raises(
        ValueError, match="^all 150 simulations, a sample of 1,000, have weight 0"
    ):
        run(Lazy(failed), buffer_size=300)


def test_slices_that_are_arrays_are_refused():
    class Table(Lazy):
        def __getitem__(self, rows):
            return np.zeros((3, 2))

    with pytest.raises(TypeError, match="must be of type Simulations, got ndarray"):
        run(Table(linear_data(9)))


def test_failures_of_all_but_the_rows_held_out_are_refused():
    class Vanishing(Lazy):
        num_reads = 0

        def __getitem__(self, rows):
            part = super().__getitem__(rows)
            self.num_reads += rows.stop - rows.start
            keep = self.num_reads <= 151  # one row to look at, and the sample
            return part._replace(weight=part.weight * keep)

    with pytest.raises(ValueError, match="^all 900 simulations that are not held out"):
        run(Vanishing(linear_data(1000)), buffer_size=300)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError)])
def test_absurd_buffers_are_refused(value, error):
    for sims in (linear_data(64), Lazy(linear_data(64))):
        with pytest.raises(error, match="^buffer_size must be"):
            run(sims, buffer_size=value)


# Memory -----------------------------------------------------------------------


def test_memory_is_that_of_two_buffers(monkeypatch):
    # Rows are made as they are read, forty times as many as fit into a buffer.
    alive, peaks = {}, []
    numbers = itertools.count()
    aligned = reading._aligned

    def watched(shape, dtype):
        array, number = aligned(shape, dtype), next(numbers)
        alive[number] = shape[0]
        weakref.finalize(array.base, alive.pop, number)
        return array

    class Endless:
        def __len__(self):
            return 20_000

        def __getitem__(self, rows):
            peaks.append(sum(alive.values()))
            index = np.arange(rows.start, rows.stop, dtype=np.float32)
            x = np.stack([np.sin(index), np.cos(index)], axis=1)
            return sj.Simulations(index % 7, x, np.ones(len(index)))

    monkeypatch.setattr(reading, "_aligned", watched)
    on_device = []

    def look(bar, state):
        on_device.append(
            sum(a.shape[0] for a in jax.live_arrays() if a.ndim and len(a) > 100)
        )

    before = sum(a.shape[0] for a in jax.live_arrays() if a.ndim and len(a) > 100)
    monkeypatch.setattr(train_module, "_show", look)
    run(Endless(), buffer_size=500, max_epochs=3)
    # Three leaves in two buffers.
    assert max(peaks) <= 3 * 2 * 500
    # theta, x and weight of the rows held out remain, and their order in the first
    # and the last state.
    assert len(on_device) == 3
    assert max(on_device) - before <= 5 * 250
    assert len(peaks) > 3 * 40
