"""Tests of the folder of simulations: kills, resumption, extension, refusals."""

import errno
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext as quiet
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import tensorstore

import sbijax as sj
from sbijax.simulators import _flight, _manifest

module = importlib.import_module("sbijax.simulators.store")

ROOT = Path(sj.__file__).parents[1]
KEY = jax.random.key(0)
PRIOR = sj.make_prior({"loc": dist.Normal(0.0, 1.0), "scale": dist.Uniform(0.5, 2.0)})


def simulator(key, theta):
    x = theta["loc"] + theta["scale"] * jax.random.normal(key, (3,))
    return {"series": x, "count": jnp.round(x[0])}


@sj.python_simulator
def python(rng, theta):
    return theta["loc"] + theta["scale"] * rng.normal(size=(2, 2))


def run(size, path, simulator=simulator, **settings):
    settings = {"key": KEY, "prior": PRIOR, "progress": False} | settings
    return sj.simulate(
        simulator=simulator, num_simulations=size, store=path, **settings
    )


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def head(sims, size):
    return jax.tree.map(lambda leaf: leaf[:size], sims)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sims"


@pytest.fixture
def kill_at(path, monkeypatch):
    """Make the n-th write of a file fail as if the process ended there."""

    class Killed(BaseException):
        pass

    def install(number):
        calls = []

        def may_end(write):
            def killed(*args):
                calls.append(write)
                if len(calls) < number:
                    return write(*args)
                # What tensorstore leaves beside a file, here longer than the file is.
                for file in [*path.rglob("zarr.json"), *path.rglob("c.*")]:
                    file.with_name(f"{file.name}.__lock").write_bytes(b"}" * 10_000)
                raise Killed

            return killed

        writes = {_manifest: ["create_array", "write_json"]}
        for home, names in (writes | {module: ["resize", "write_rows"]}).items():
            for name in names:
                monkeypatch.setattr(home, name, may_end(getattr(home, name)))
        return Killed, monkeypatch.undo

    return install


@pytest.mark.parametrize("kind", [simulator, python])
def test_store_changes_nothing_and_is_read_back(kind, path):
    plain = sj.simulate(KEY, PRIOR, kind, 50, chunk_size=20)
    stored = run(50, path, kind, chunk_size=20)
    assert_equal(stored, plain)
    reader = sj.open_simulations(path)
    assert len(reader) == 50
    assert repr(reader) == f"StoredSimulations(50 draws in {path})"
    assert_equal(reader.load(), plain)
    assert isinstance(reader.load().weight, jax.Array)
    for rows in (slice(15, 45), slice(-5, None), slice(30, 10), slice(None, None, -7)):
        assert_equal(reader[rows], jax.tree.map(lambda a, r=rows: a[r], plain))
    with pytest.raises(TypeError, match="are a slice like"):
        reader[3]


def test_second_call_simulates_nothing(path):
    num_calls = 0

    def counting(key, theta):
        nonlocal num_calls
        num_calls += 1
        return theta["loc"]

    first = run(30, path, counting)
    before = num_calls
    assert_equal(run(30, path, counting), first)
    assert num_calls <= before + 1  # it is traced to be recognised


@pytest.mark.parametrize("kind", [simulator, python])
def test_larger_number_extends_and_smaller_one_reads(kind, path):
    expected = run(100, path.with_name("other"), kind, chunk_size=16)
    for size in (10, 40, 33, 100, 5):
        assert_equal(run(size, path, kind, chunk_size=16), head(expected, size))
    assert_equal(sj.open_simulations(path).load(), expected)


def test_batches_across_the_end_are_extended(path):
    batched = sj.python_simulator(
        lambda rng, theta: theta["loc"] + rng.normal(size=7), batch_size=7
    )
    expected = run(60, path.with_name("other"), batched)
    for size in (10, 38, 60):
        assert_equal(run(size, path, batched), head(expected, size))


@pytest.mark.parametrize("kind", [simulator, python])
def test_killed_at_every_write_it_goes_on_with_the_same_bits(kind, path, kill_at):
    expected = run(70, path.with_name("other"), kind, chunk_size=20)
    num_done = 0
    for size in (50, 70):
        for number in itertools.count(1):
            killed, undo = kill_at(number)
            try:
                sims = run(size, path, kind, chunk_size=20)
            except killed:
                undo()
            else:
                undo()
                break
            if (path / "zarr.json").exists():
                reader = sj.open_simulations(path)
                assert len(reader) >= num_done
                num_done, done = len(reader), np.asarray(reader._rows)
                some = jax.tree.map(lambda a, d=done: a[d], expected)
                assert_equal(reader.load(), some)
        assert number > 4
        assert_equal(sims, head(expected, size))
    assert not list(path.rglob("*.__lock"))


SCRIPT = """
    import sys, time
    import jax, numpyro.distributions as dist
    import sbijax as sj

    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    path, log = sys.argv[1:]
    @sj.python_simulator
    def simulator(rng, theta):
        with open(log, "a") as file:
            file.write(".")
        time.sleep(0.004)
        return theta + rng.normal(size=3)
    sims = sj.simulate(
        jax.random.key(0), prior, simulator, 600, chunk_size=50, store=path
    )
"""


def start(body, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def num_done(path):
    try:
        return len(sj.open_simulations(path))
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_killed_processes_lose_at_most_the_chunk_in_flight(tmp_path):
    path, log = tmp_path / "sims", tmp_path / "log"
    log.touch()
    for num_draws in (180, 30, 110):
        before = log.stat().st_size, num_done(path)
        process = start(SCRIPT, path, log)
        while log.stat().st_size < before[0] + num_draws:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.2)  # the workers end
        num_lost = log.stat().st_size - before[0] - (num_done(path) - before[1])
        assert 0 <= num_lost < 50 + 2 * 25  # a chunk, and what two workers were at
    assert 100 < num_done(path) < 600
    _, errors = start(SCRIPT, path, log).communicate()
    assert num_done(path) == 600, errors
    other = tmp_path / "other"
    start(SCRIPT, other, tmp_path / "log2").communicate()
    assert_equal(sj.open_simulations(path).load(), sj.open_simulations(other).load())


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_chunk_that_is_not_full_is_written_after_a_while(share, path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_PER_FLUSH", 0.0)
    monkeypatch.setattr(module, "_SHARE_OF_FLUSH", share)  # with 0: when it is quiet
    monkeypatch.setattr(_flight, "_SECONDS_TO_IDLE", 0.3)
    lengths = []
    flush = module.FolderSink.flush

    def watched(sink):
        flush(sink)
        lengths.append(num_done(path))

    def function(rng, theta):
        time.sleep(1.0 if theta["loc"] > 1.0 else 0.0)
        return theta["loc"]

    monkeypatch.setattr(module.FolderSink, "flush", watched)
    run(20, path, sj.python_simulator(function))
    assert lengths == sorted(lengths)
    assert any(0 < length < 20 for length in lengths)
    assert lengths[-1] == 20


def test_interrupted_run_keeps_what_is_finished(path, monkeypatch):
    write = module.FolderSink.write

    def interrupted(sink, rows):
        if rows.start >= 40:
            raise KeyboardInterrupt
        write(sink, rows)

    monkeypatch.setattr(module.FolderSink, "write", interrupted)
    with pytest.warns(sj.SbijaxWarning, match="the 40 of 100 simulations"):
        sims = run(100, path, chunk_size=20)
    monkeypatch.undo()
    assert_equal(sj.open_simulations(path).load(), sims)
    assert_equal(sims, head(run(100, path), 40))


def test_failures_of_earlier_runs_are_still_said(path):
    def function(rng, theta):
        if theta["loc"] > 0.5:
            raise ValueError("too large")
        return theta["loc"]

    kind = sj.python_simulator(function)
    with pytest.warns(sj.SbijaxWarning, match=r"failed: ValueError: too large \(\d"):
        first = run(50, path, kind)
    with pytest.warns(sj.SbijaxWarning, match="of 50 simulations"):
        assert_equal(run(50, path, kind), first)
    num_failed = int(np.sum(first.weight == 0.0))
    with pytest.warns(sj.SbijaxWarning, match=f"{num_failed} were in the store"):
        run(90, path, kind)


def test_two_processes_are_refused(path, tmp_path):
    log = tmp_path / "log"
    process = start(SCRIPT, path, log)
    while num_done(path) < 100:
        time.sleep(0.02)
    with pytest.raises(RuntimeError, match=f"another process .process {process.pid}"):
        run(50, path)
    process.kill()
    process.communicate()
    # A lock that was held by a killed process is gone.
    with pytest.raises(ValueError, match=r"another prior \(theta is float32\[\] there"):
        run(50, path)


def other_series(key, theta):
    return {"series": jnp.zeros(4), "count": theta["loc"]}


def same_shapes(key, theta):
    x = theta["loc"] - theta["scale"] * jax.random.normal(key, (3,))
    return {"series": x, "count": jnp.round(x[0])}


same_shapes.__qualname__ = "simulator"
OTHER_PRIOR = sj.make_prior(
    {"loc": dist.Normal(0.0, 1.1), "scale": dist.Uniform(0.5, 2.0)}
)
OTHER_THETA = sj.make_prior({"loc": dist.Normal(0.0, 1.0)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key": jax.random.key(1)}, r"another key .*data=\[0, 0\] there"),
        ({"key": jax.random.key(0, impl="rbg")}, "another key"),
        ({"prior": OTHER_PRIOR}, "another prior"),
        ({"prior": OTHER_THETA, "simulator": lambda k, t: t["loc"]}, "another prior"),
        ({"simulator": python}, "another simulator .*kind=JAX there"),
        ({"simulator": other_series}, "another simulator"),
        ({"simulator": same_shapes}, "same name but another program"),
        ({"chunk_size": 7}, "has chunks of 10 draws, chunk_size=7"),
    ],
)
def test_store_of_another_run_is_refused(change, match, path):
    expected = run(20, path, chunk_size=10)
    with pytest.raises(ValueError, match=match):
        run(30, path, **change)
    assert_equal(sj.open_simulations(path).load(), expected)


def test_store_of_another_python_simulator_is_refused(path):
    def function(rng, theta):
        return theta["loc"] + rng.normal(size=num)

    num = 3
    expected = run(20, path, sj.python_simulator(function))
    num = 4  # what a function refers to is not looked into, but x tells
    with pytest.raises(ValueError, match=r"its x is float32\[3\], that of this one"):
        run(30, path, sj.python_simulator(function))
    with pytest.raises(ValueError, match="another simulator .*batch_size=10 here"):
        run(30, path, sj.python_simulator(function, batch_size=10))
    num = 3
    run(30, path, sj.python_simulator(function))
    assert_equal(head(sj.open_simulations(path).load(), 20), expected)

    def function(rng, theta):
        return theta["loc"] - rng.normal(size=num)

    with pytest.raises(ValueError, match="same name but another program"):
        run(30, path, sj.python_simulator(function))


def test_a_draw_of_another_shape_is_a_failure_in_a_store_too(path):
    def function(rng, theta):
        return np.zeros(1 if theta["loc"] > 0.0 else 2)

    kind = sj.python_simulator(function)
    with pytest.warns(sj.SbijaxWarning, match=r"x was float64\[\d\], that of other"):
        expected = run(60, path.with_name("other"), kind)
    for size in (1, 4, 5, 6, 60):  # runs that begin with either
        with pytest.warns(sj.SbijaxWarning, match="failed") if size > 1 else quiet():
            sims = run(size, path, kind)
    assert_equal(sims, expected)
    assert 10 < np.sum(sims.weight) < 50


def test_foreign_and_damaged_folders_are_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        sj.open_simulations(path)
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(NotADirectoryError, match="store must be a folder"):
        run(5, file)
    with pytest.raises(ValueError, match="holds something other than simulations"):
        run(5, tmp_path)
    with pytest.raises(ValueError, match="is damaged or is not a folder written by"):
        sj.open_simulations(tmp_path)
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="no simulation in .* is finished yet"):
        sj.open_simulations(path)
    run(5, path)
    (path / ".lock").unlink()  # as a copy may leave it out
    run(7, path)
    assert file.read_text() == "text"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGE = {
    "manifest": lambda p: (p / "zarr.json").write_text("{"),
    "foreign group": lambda p: edit(p / "zarr.json", lambda c: c["attributes"].clear()),
    "array gone": lambda p: (p / "theta.loc/zarr.json").unlink(),
    "cut": lambda p: (p / "x.series/c.1.0").write_bytes(b"abc"),
    "weights cut": lambda p: (p / "weight/c.0").write_bytes(b"abc"),
    "compressed": lambda p: edit(
        p / "x.series/zarr.json", lambda c: c["codecs"].append({"name": "gzip"})
    ),
    "shape": lambda p: edit(
        p / "x.series/zarr.json", lambda c: c.update(shape=[30, 5])
    ),
    "rows": lambda p: edit(p / "theta.loc/zarr.json", lambda c: c.update(shape=[3])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said(damage, path):
    run(30, path, chunk_size=10)
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=f"{path} is damaged or is not a folder"):
        sj.open_simulations(path).load()
    with pytest.raises(ValueError, match=f"{path} is damaged or is not a folder"):
        run(30, path)


def test_later_format_is_said(path):
    run(5, path)
    edit(path / "zarr.json", lambda c: c["attributes"]["sbijax"].update(format=99))
    with pytest.raises(ValueError, match="format 99; this version reads up to 1"):
        sj.open_simulations(path)


FULL = """
    import resource, sys
    import jax, numpyro.distributions as dist
    import sbijax as sj

    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    if sys.argv[2] == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    sj.simulate(
        jax.random.key(0),
        prior,
        lambda key, theta: theta + jax.random.normal(key, (100,)),
        int(sys.argv[3]),
        chunk_size=int(sys.argv[4]),
        store=sys.argv[1],
    )
"""


def test_a_file_that_cannot_be_written_is_said(path):
    _, errors = start(FULL, path, "limited", 1000, 100).communicate()
    assert "OSError: [Errno 27] the store" in errors
    assert "cannot be written to (File too large)" in errors


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte, where that can be had."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_keeps_what_is_finished(small_disk):
    path = small_disk / "sims"

    def wide(key, theta):
        return theta["loc"] + jax.random.normal(key, (100,))

    with pytest.raises(OSError, match="cannot be written to .No space left") as caught:
        run(10_000, path, wide, chunk_size=100)
    assert caught.value.errno == errno.ENOSPC
    stored = sj.open_simulations(path)
    assert 1000 < len(stored) < 3000
    assert len(stored) % 100 == 0
    assert not list(path.rglob("*.part"))
    plain = sj.simulate(KEY, PRIOR, wide, len(stored), chunk_size=100)
    assert_equal(stored.load(), plain)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert_equal(head(run(4000, path, wide), len(stored)), plain)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert len(sj.open_simulations(path)) == 4000
    with pytest.raises(OSError, match="cannot be written to .Read-only"):
        run(5000, path, wide)


def test_the_format_is_zarr_with_chunks_of_raw_bytes(path):
    sims = run(50, path, chunk_size=20)
    arrays = {
        "theta.loc": sims.theta["loc"],
        "x.series": sims.x["series"],
        "x.count": sims.x["count"],
        "weight": sims.weight,
    }
    for name, expected in arrays.items():
        metadata = json.loads((path / name / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3
        assert metadata["node_type"] == "array"
        assert metadata["shape"] == list(expected.shape)
        assert metadata["data_type"] == "float32"
        assert metadata["codecs"] == [
            {"name": "bytes", "configuration": {"endian": "little"}}
        ]
        key = "c.1.0" if expected.ndim == 2 else "c.1"
        chunk = np.fromfile(path / name / key, "<f4").reshape(20, *expected.shape[1:])
        np.testing.assert_array_equal(chunk, expected[20:40])
    assert json.loads((path / "zarr.json").read_text())["node_type"] == "group"


def test_structures_and_names(path):
    def tree(key, theta):
        x = theta["loc"]
        return {"a/b": (x, {"../c": x + 1.0}), "A_b": x + 2.0, "a_b": x + 3.0}

    expected = sj.simulate(KEY, PRIOR, tree, 9)
    assert_equal(run(9, path, tree), expected)
    assert_equal(sj.open_simulations(path).load(), expected)
    names = {p.name for p in path.iterdir()}
    assert len({n.lower() for n in names}) == len(names) == 9

    def trials(key, theta):
        return sj.make_trials(theta["loc"] + jnp.arange(3.0), num_padded=4)

    other = path.with_name("trials")
    run(9, other, trials)
    assert isinstance(sj.open_simulations(other)[:3].x, sj.Trials)


def num_bytes_read():
    name = "/tensorstore/kvstore/file/bytes_read"
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for metric in found for value in metric["values"])


def test_only_what_is_asked_for_is_read(path):
    run(100, path, chunk_size=10)
    stored, before = sj.open_simulations(path), num_bytes_read()
    stored[35:52]
    row_bytes = 4 * (2 + 3 + 1 + 1)
    assert num_bytes_read() - before == 3 * 10 * row_bytes


def test_of_a_large_chunk_only_parts_are_read(path):
    def image(key, theta):
        return theta["loc"] + jax.random.normal(key, (64, 64))

    expected = sj.simulate(KEY, PRIOR, image, 150)
    assert_equal(run(150, path, image, chunk_size=100), expected)
    stored, before = sj.open_simulations(path), num_bytes_read()
    assert_equal(stored[95:105], jax.tree.map(lambda a: a[95:105], expected))
    assert num_bytes_read() - before < 50 * 64 * 64 * 4
