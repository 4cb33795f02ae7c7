"""Tests of simulators that are not JAX: workers, seeds, failures, executors."""

import concurrent.futures
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import worker
from sbijax.simulators import _pieces, _sink, python_simulator, simulate_batch
from sbijax.worker import Piece, SimulatorFault, run_piece

ROOT = Path(sj.__file__).parents[1]
KEY = jax.random.key(0)
PRIOR = sj.make_prior({"loc": dist.Normal(0.0, 1.0), "pair": dist.Normal(jnp.zeros(2))})
SCALAR = sj.make_prior(dist.Normal(0.0, 1.0))


class Inline(concurrent.futures.Executor):
    """Runs at once, and keeps what it was given."""

    def __init__(self):
        self.pieces = []

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        self.pieces.append(args[0])
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Forgetful(Inline):
    """Loses the results of its first calls, as dask may when a worker ends."""

    def __init__(self, num_lost):
        super().__init__()
        self.num_lost = num_lost

    def submit(self, fn, /, *args, **kwargs):
        future = super().submit(fn, *args, **kwargs)
        if len(self.pieces) > self.num_lost:
            return future
        lost = concurrent.futures.Future()
        lost.set_exception(AttributeError("'list' has no 'with_traceback'"))
        return lost


def one_draw():
    # Local functions are sent by value: workers need not import this file.
    def function(rng, theta):
        return {"x": theta["loc"] + rng.normal(size=3), "n": rng.poisson(4)}

    return function


def many_draws():
    def function(rng, theta):
        noise = rng.normal(size=(len(theta["loc"]), 3))
        return theta["loc"][:, None] + noise

    return function


def run(function, size, *, prior=SCALAR, key=KEY, executor=None, **settings):
    simulator = python_simulator(function, **settings)
    return sj.simulate(key, prior, simulator, size, executor=executor, progress=False)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_draws_are_the_function_of_theta_and_a_generator():
    sims = run(one_draw(), 20, prior=PRIOR)
    assert sims.x["x"].shape == (20, 3)
    assert sims.x["n"].shape == (20,)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sims))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(sims))
    words = tuple(int(word) for word in jax.random.key_data(KEY))
    for i in range(20):
        rng = np.random.default_rng(np.random.SeedSequence(words, spawn_key=(i,)))
        expected = np.asarray(sims.theta["loc"])[i] + rng.normal(size=3)
        np.testing.assert_array_equal(sims.x["x"][i], np.float32(expected))


def test_theta_is_that_of_a_jax_simulator():
    ours = run(one_draw(), 30, prior=PRIOR, executor=Inline())
    theirs = sj.simulate(KEY, PRIOR, lambda key, theta: theta["loc"], 30)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-6), ours.theta, theirs.theta
    )


def test_theta_is_numpy_of_one_draw_that_may_be_written_to():
    def function(rng, theta):
        assert isinstance(theta["loc"], np.float32)
        assert theta["pair"].shape == (2,)
        theta["pair"][:] = np.nan
        return theta["loc"]

    sims = run(function, 5, prior=PRIOR, executor=Inline())
    assert np.all(np.isfinite(sims.theta["pair"]))
    np.testing.assert_array_equal(sims.weight, 1.0)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_draws_do_not_depend_on_workers_or_pieces(batch_size, monkeypatch):
    function = one_draw() if batch_size is None else many_draws()
    settings = {"prior": PRIOR, "batch_size": batch_size}
    reference = run(function, 100, executor=Inline(), **settings)
    for num_workers in (1, 3):
        monkeypatch.setattr(_pieces, "num_cores", lambda n=num_workers: n)
        assert_equal(run(function, 100, **settings), reference)
    for seconds in (1e-9, 10.0):
        monkeypatch.setattr(_pieces, "_SECONDS_PER_PIECE", seconds)
        executor = Inline()
        assert_equal(run(function, 100, executor=executor, **settings), reference)
        lengths = {piece.num_units for piece in executor.pieces}
        assert (lengths == {1}) == (seconds < 1.0)


def test_any_executor_gives_the_same_draws():
    reference = run(one_draw(), 50, prior=PRIOR)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        assert_equal(run(one_draw(), 50, prior=PRIOR, executor=threads), reference)
        assert threads.submit(int).result() == 0  # it is still the caller's
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as processes:
        assert_equal(run(one_draw(), 50, prior=PRIOR, executor=processes), reference)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_longer_run_starts_with_the_same_draws(batch_size):
    function = one_draw() if batch_size is None else many_draws()
    settings = {"prior": PRIOR, "batch_size": batch_size, "executor": Inline()}
    short, long = run(function, 30, **settings), run(function, 50, **settings)
    assert_equal(short, jax.tree.map(lambda leaf: leaf[:30], long))


def test_draws_are_independent_of_each_other_and_of_theta():
    def function(rng, theta):
        return rng.normal()

    sims = run(function, 4000, executor=Inline())
    other = run(function, 4000, executor=Inline(), key=jax.random.key(1))
    theta, x = np.asarray(sims.theta), np.asarray(sims.x)
    for values in (x, x[1:] * x[:-1], theta * x, x * np.asarray(other.x)):
        assert abs(values.mean()) < 4.5 * values.std() / np.sqrt(4000)
    np.testing.assert_allclose(x.std(), 1.0, atol=4.5 / np.sqrt(8000))


def test_cheap_draws_are_sent_many_at_a_time():
    executor = Inline()
    run(one_draw(), 3000, prior=PRIOR, executor=executor)
    assert len(executor.pieces) < 200
    assert executor.pieces[-1].num_units < max(p.num_units for p in executor.pieces)


def test_workers_do_not_load_jax():
    def function(rng, theta):
        import sys

        return float("jax" in sys.modules), float("numpy" in sys.modules)

    has_jax, has_numpy = run(function, 5).x
    assert not np.any(has_jax)
    assert np.all(has_numpy)


@pytest.mark.parametrize("num", [0, 1])
def test_what_x_may_be(num):
    def trials(rng, theta):
        from sbijax.base import Trials

        return Trials(np.array([theta, np.nan]), np.array([True, False]))

    def listing(rng, theta):
        return [theta, 1]

    sims = run((trials, listing)[num], 4, executor=Inline())
    np.testing.assert_array_equal(sims.weight, 1.0)
    if num == 0:
        assert isinstance(sims.x, sj.Trials)
        np.testing.assert_array_equal(sims.x.x[:, 1], 0.0)
    else:
        assert sims.x.shape == (4, 2)


def test_a_named_tuple_of_a_module_is_taken_and_one_of_a_script_refused(tmp_path):
    def of_module(rng, theta):
        from sbijax.worker import Block

        return Block([theta, 1.0], theta)

    sims = run(of_module, 4)
    assert type(sims.x) is worker.Block
    body = """
        import typing
        class Pair(typing.NamedTuple):
            a: float
        simulator = sj.python_simulator(lambda rng, theta: Pair(theta))
        sj.simulate(jax.random.key(0), prior, simulator, 5)
    """
    _, errors = finish(script(body, tmp_path / "log"))
    assert "TypeError: x cannot be sent back from a worker (PicklingError" in errors


def test_number_of_workers_is_asked_for(monkeypatch):
    monkeypatch.setattr(_pieces, "num_cores", lambda: 3)
    with concurrent.futures.ThreadPoolExecutor(7) as threads:
        assert _pieces.num_workers_of(threads) == 7
    assert _pieces.num_workers_of(Inline()) == 3


def test_double_precision_follows_the_context():
    with jax.enable_x64(True):
        sims = run(two_arguments, 4, executor=Inline())
    assert sims.x.dtype == sims.theta.dtype == jnp.float64
    np.testing.assert_array_equal(sims.x, sims.theta)


def fails_in_many_ways():
    def function(rng, theta):
        x = theta + rng.normal(size=2)
        if theta > 1.8:
            os.kill(os.getpid(), signal.SIGKILL)
        if theta > 1.5:
            time.sleep(1000)
        if theta > 1.2:
            raise ValueError("no steady state")
        if theta > 1.0:
            return np.array([x[0], np.nan])
        if theta > 0.8:
            os._exit(3)
        if theta > 0.7:
            sys.exit("gone")
        if theta > 0.6:
            return None
        if theta > 0.5:
            return x[:1]
        if theta > 0.4:
            return 1e300 * x
        return x

    return function


REASONS = [
    "ValueError: no steady state",
    "took longer than timeout=0.3 s",
    r"killed its worker \(SIGKILL\)",
    r"ended its worker \(exit code 3\)",
    "SystemExit: gone",
    "got NoneType",
    r"x was float64\[1\], that of other draws float32\[2\]",
    "theta or x is not finite",
]


def test_failed_draws_have_weight_zero_and_are_counted(monkeypatch):
    monkeypatch.setattr(_sink, "_MAX_REASONS", 100)
    with pytest.warns(sj.SbijaxWarning, match="of 80 simulations") as log:
        sims = run(fails_in_many_ways(), 80, timeout=0.3)
    theta, weight = np.asarray(sims.theta), np.asarray(sims.weight)
    np.testing.assert_array_equal(weight, np.where(theta > 0.4, 0.0, 1.0))
    (warning,) = log
    assert warning.filename == __file__
    text = str(warning.message)
    for reason in REASONS:
        assert re.search(reason, text), reason
    raised = (theta > 1.2) & (theta <= 1.5)
    expected = f"({raised.sum()}, the first is draw {np.argmax(raised)})"
    assert f"no steady state {expected}" in text
    ok = run(lambda rng, theta: theta + rng.normal(size=2), 80, executor=Inline())
    np.testing.assert_array_equal(sims.x[weight > 0], ok.x[weight > 0])


def test_many_reasons_are_said_in_short():
    def function(rng, theta):
        if theta > 0.0:
            raise ValueError(f"theta is {theta}")
        return theta

    with pytest.warns(sj.SbijaxWarning, match=r"other errors \(\d+\)") as log:
        run(function, 60, executor=Inline())
    assert len(str(log[0].message)) < 1000


def test_a_batch_fails_as_a_whole():
    def function(rng, theta):
        if theta[0] > 0.0:
            raise ValueError("bad batch")
        return theta

    with pytest.warns(sj.SbijaxWarning, match="bad batch") as log:
        sims = run(function, 50, batch_size=8, executor=Inline())
    failed = np.repeat(np.asarray(sims.theta)[::8] > 0.0, 8)[:50]
    np.testing.assert_array_equal(sims.weight == 0.0, failed)
    assert f"bad batch ({failed.sum()}," in str(log[0].message)


def test_a_hang_that_no_exception_reaches_is_ended():
    def function(rng, theta):
        import ctypes

        if theta > 1.5:
            ctypes.PyDLL(None).sleep(1000)  # holds the lock of the interpreter
        return theta

    with pytest.warns(sj.SbijaxWarning, match="took longer than timeout=0.2 s"):
        sims = run(function, 30, timeout=0.2)
    np.testing.assert_array_equal(sims.weight == 0.0, sims.theta > 1.5)


def test_a_hang_in_a_thread_is_left_behind():
    end = threading.Event()

    def function(rng, theta):
        if theta > 1.0:
            end.wait(100.0)
        return theta

    piece = Piece("t", None, np.array([0.0, 2.0, 0.5]), 0, 3, (0,), None, 0.2)
    worker._loaded("t").append(function)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(run_piece, piece).result()
    end.set()
    assert outcome.failures == [(1, "took longer than timeout=0.2 s")]
    assert outcome.blocks[0].positions == [0, 2]


def test_what_a_draw_has_started_ends_with_its_worker(tmp_path):
    path = str(tmp_path / "pid")

    def function(rng, theta):
        import ctypes
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        with open(path, "w") as file:
            file.write(str(child.pid))
        ctypes.PyDLL(None).sleep(1000)

    with pytest.raises(ValueError, match="all 1 simulations failed: took longer"):
        run(function, 1, timeout=0.2)
    assert is_gone(int(Path(path).read_text()))


def is_gone(pid):
    """Whether a process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_all_failed_is_an_error_with_the_reason():
    def function(rng, theta):
        return theta["rate"]

    with pytest.raises(ValueError, match="all 9 simulations failed: IndexError"):
        run(function, 9, executor=Inline())
    with pytest.raises(ValueError, match="all 9 simulations failed: theta or x"):
        run(lambda rng, theta: np.nan, 9, executor=Inline())


def test_results_that_an_executor_lost_are_drawn_again():
    reference = run(one_draw(), 20, prior=PRIOR, executor=Inline())
    sims = run(one_draw(), 20, prior=PRIOR, executor=Forgetful(num_lost=2))
    assert_equal(sims, reference)


def test_an_executor_that_loses_a_result_twice_is_an_error():
    with pytest.raises(RuntimeError, match="executor could not run .*AttributeError"):
        run(one_draw(), 20, prior=PRIOR, executor=Forgetful(num_lost=1_000))


def test_first_draw_that_succeeds_says_what_x_is():
    def function(rng, theta):
        # The first draws are the slowest: the others are done before them.
        value = float(theta)
        time.sleep(0.3 if value == first else 0.0)
        if value == second:
            raise ValueError("second")
        return np.zeros(1) if value == first else np.zeros(2)

    first, second = (float(t) for t in run(lambda rng, t: t, 2, executor=Inline()).x)
    with pytest.warns(sj.SbijaxWarning, match=r"x was float64\[2\]"):
        sims = run(function, 6)
    assert sims.x.shape == (6, 1)
    assert sims.weight.tolist() == [1, 0, 0, 0, 0, 0]


def two_arguments(rng, theta):
    return theta


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"function": 3}, TypeError, "must be a function, got int"),
        (
            {"function": lambda theta: theta},
            TypeError,
            r"signature \(theta\), expected",
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
        ({"timeout": -1.0}, ValueError, "timeout must be positive"),
        ({"timeout": "1"}, TypeError, "timeout must be a positive number"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        python_simulator(**({"function": two_arguments} | arguments))


def test_functions_without_a_signature_are_taken():
    python_simulator(np.random.Generator.normal)


def test_bad_executors():
    jax_simulator = lambda key, theta: theta  # noqa: E731
    with pytest.raises(TypeError, match="executor is for simulators that are not JAX"):
        sj.simulate(KEY, SCALAR, jax_simulator, 5, executor=Inline())
    with pytest.raises(TypeError, match=r"got int. Of a dask client, give client.get"):
        run(two_arguments, 5, executor=3)
    with pytest.raises(TypeError, match="simulate_batch .* has to be a JAX function"):
        simulate_batch(KEY, SCALAR, python_simulator(two_arguments), 5)


@pytest.mark.parametrize("executor", [None, Inline()])
def test_faults_of_every_draw_stop_the_run(executor):
    def wrong_rows(rng, theta):
        return theta[:3]

    class Unloadable:
        def __reduce__(self):
            return (int, ("not a number",))

    unloadable, lock = Unloadable(), threading.Lock()
    with pytest.raises(TypeError, match=r"must return leaves \[5, ...\], got shape"):
        run(wrong_rows, 1000, batch_size=5, executor=executor)
    with pytest.raises(TypeError, match=r"cannot be loaded in a worker \(ValueError"):
        run(lambda rng, theta: unloadable, 1000, executor=executor)
    with pytest.raises(TypeError, match=r"cannot be sent to workers .*'_thread.lock'"):
        run(lambda rng, theta: lock, 1000, executor=executor)


def test_a_worker_that_cannot_start_is_said(monkeypatch):
    from sbijax.simulators import _pool

    monkeypatch.setattr(_pool, "serve", os._exit)
    with pytest.raises(TypeError, match="ended while it started .*exit code"):
        run(two_arguments, 5)


def test_an_executor_that_breaks_is_said():
    def function(rng, theta):
        os._exit(1)

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as processes:
        with pytest.raises(RuntimeError, match="executor could not run .*Broken"):
            run(function, 5, executor=processes)


def test_progress_shows_rate_and_failures(capfd, monkeypatch):
    monkeypatch.setattr(_sink, "_PROGRESS_DELAY", 0.0)

    def function(rng, theta):
        return theta if theta < 0.0 else np.nan

    with pytest.warns(sj.SbijaxWarning, match="failed"):
        sims = sj.simulate(
            KEY, SCALAR, python_simulator(function), 50, executor=Inline()
        )
    out, err = capfd.readouterr()
    assert out == ""
    assert "draw/s" in err
    assert f"failed={int(np.sum(sims.weight == 0.0))}" in err


SCRIPT = """
    import os, signal, sys, threading, time
    import jax, numpyro.distributions as dist
    import sbijax as sj

    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    def function(rng, theta):
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.05)
        return theta + rng.normal()
"""


def script(body, *args):
    return [
        sys.executable,
        "-c",
        textwrap.dedent(SCRIPT) + textwrap.dedent(body),
        *args,
    ]


def finish(command):
    """Output and errors of a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    return done.stdout, done.stderr


def test_a_script_needs_no_guard(tmp_path):
    body = """
        simulator = sj.python_simulator(lambda rng, theta: function(rng, theta))
        print(sj.simulate(jax.random.key(0), prior, simulator, 5).x.shape)
    """
    path = tmp_path / "script.py"
    path.write_text(script(body)[2].replace("sys.argv[1]", repr(str(tmp_path / "log"))))
    out, errors = finish([sys.executable, path])
    assert out == "(5,)\n", errors


def test_interrupt_returns_what_is_finished_and_ends_the_workers(tmp_path):
    body = """
        def interrupt():
            while not os.path.exists(sys.argv[1]) or os.path.getsize(sys.argv[1]) < 200:
                time.sleep(0.05)
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGINT)

        # What a shell runs in the background ignores this signal from the start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt).start()
        simulator = sj.python_simulator(function)
        sims = sj.simulate(jax.random.key(0), prior, simulator, 10000)
        print(len(sims.x), float(sims.weight.sum()))
    """
    log = tmp_path / "log"
    out, errors = finish(script(body, log))
    assert "simulate was interrupted: the" in errors
    num_rows, weight = (float(word) for word in out.split())
    assert 5 < num_rows < 1000
    assert weight == num_rows
    assert all(is_gone(int(pid)) for pid in set(log.read_text().split()))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    body = """
        sj.simulate(jax.random.key(0), prior, sj.python_simulator(function), 10000)
    """
    log = tmp_path / "log"
    process = subprocess.Popen(
        script(body, log),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while not log.exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert all(is_gone(int(pid)) for pid in set(log.read_text().split()))


def test_fault_is_an_exception_that_can_be_sent():
    with pytest.raises(SimulatorFault, match="cannot be loaded"):
        run_piece(Piece("none", b"", np.zeros(1), 0, 1, (0,), None, None))
