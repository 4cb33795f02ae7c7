"""Draws that stay in the folder: the same ones, and none of them in memory."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from tests.helpers import assert_same_bits

KEY = jax.random.key(0)
PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


def simulator(key, theta):
    return theta + jax.random.normal(key, (3,))


@sj.python_simulator
def python(rng, theta):
    return theta + rng.normal(size=3)


def to_store(size, path, simulator=simulator, **settings):
    settings = {"progress": False} | settings
    return sj.simulate_to_store(KEY, PRIOR, simulator, size, path, **settings)


@pytest.mark.parametrize("kind", [simulator, python])
def test_it_holds_the_draws_of_simulate(kind, tmp_path):
    plain = sj.simulate(KEY, PRIOR, kind, 50, chunk_size=20)
    stored = to_store(50, tmp_path / "s", kind, chunk_size=20)
    assert isinstance(stored, sj.StoredSimulations)
    assert len(stored) == 50
    assert_same_bits(stored.load(), plain)
    # simulate goes on from it, and the other way round.
    assert_same_bits(sj.simulate(KEY, PRIOR, kind, 50, store=tmp_path / "s"), plain)
    more = to_store(70, tmp_path / "s", kind)
    assert len(more) == 70
    assert len(stored) == 50
    assert_same_bits(more[:50], plain)


def test_a_smaller_number_shows_the_first_draws(tmp_path):
    whole = to_store(50, tmp_path / "s", chunk_size=20)
    few = to_store(np.int64(30), tmp_path / "s")
    assert len(few) == 30
    assert_same_bits(few.load(), whole[:30])
    assert len(sj.open_simulations(tmp_path / "s")) == 50


def test_failures_are_said_and_counted_over_the_whole_store(tmp_path):
    def fails(key, theta):
        return jnp.where(theta > 1.0, jnp.nan, theta)

    theta = sj.simulate(KEY, PRIOR, simulator, 90).theta
    for size in (40, 90):
        count = int(np.sum(theta[:size] > 1.0))
        with pytest.warns(sj.SbijaxWarning, match=f"^{count} of {size} ") as record:
            stored = to_store(size, tmp_path / "s", fails, chunk_size=20)
        assert record[0].filename == __file__
    assert int(np.sum(stored[:].weight == 0.0)) == count
    with pytest.raises(ValueError, match="all 20 simulations failed"):
        to_store(20, tmp_path / "t", lambda key, theta: theta * jnp.nan)


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch):
    write = sj.simulators.store.FolderSink.write

    def interrupted(sink, rows):
        if rows.start >= 40:
            raise KeyboardInterrupt
        write(sink, rows)

    with monkeypatch.context() as patch:
        patch.setattr(sj.simulators.store.FolderSink, "write", interrupted)
        with pytest.warns(sj.SbijaxWarning, match="the 40 of 100 ") as record:
            stored = to_store(100, tmp_path / "s", chunk_size=20)
    assert record[0].filename == __file__
    assert len(stored) == 40
    assert_same_bits(to_store(100, tmp_path / "s")[:40], stored.load())


@pytest.mark.parametrize("store", [None, 3])
def test_a_store_is_needed(store):
    with pytest.raises(TypeError, match="store must be the path of a folder"):
        to_store(10, store)


def wide(key, theta):
    return theta + jax.random.normal(key, (250,))


def test_memory_does_not_grow_with_the_draws(tmp_path):
    def peak(size, name, draw):
        tracemalloc.start()
        try:
            draw(KEY, PRIOR, wide, size, chunk_size=200, store=tmp_path / name)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200, "first", sj.simulate_to_store)  # compiles
    less = peak(1_000, "less", sj.simulate_to_store)
    more = peak(5_000, "more", sj.simulate_to_store)
    # What is kept of a draw is a few numbers; the draw itself has a thousand bytes.
    assert more - less < 30 * 4_000
    assert peak(5_000, "more", sj.simulate) > less + 1_000 * 4_000
