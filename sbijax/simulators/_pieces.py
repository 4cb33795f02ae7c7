"""Draws of a Python simulator, run as pieces by an executor.

A unit of work is one draw, or one batch; a piece is as many units as take about a
tenth of a second, so that the way to a worker and back costs little.  Pieces change
nothing about the draws: theta of draw `i` is that of a JAX simulator, and the
generator of unit `j` is seeded by (key, j).
"""

import concurrent.futures
import contextlib
import functools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Prior, PyTree
from sbijax.simulators._flight import Flight
from sbijax.simulators._outcomes import OutcomeReader
from sbijax.simulators._pool import WorkerPool
from sbijax.simulators._sink import Failures, Rows
from sbijax.simulators.python import PythonSimulator
from sbijax.worker import Piece

__all__ = [
    "draw_pieces",
    "draw_thetas",
    "num_cores",
    "num_workers_of",
    "pickle_function",
]

_SECONDS_PER_PIECE = 0.1
_PIECES_PER_WORKER = 2  # one that runs, one that waits
_PIECE_BYTES = 64 * 2**20
_THETA_CHUNK = 4096


class _ThetaSource:
    """theta of any range of draws, as numpy arrays; the last chunk is kept."""

    def __init__(self, key: Array, prior: Prior):
        self._key, self._prior = key, prior
        row = jax.eval_shape(prior.sample, key)
        row_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(row))
        self._size = max(1, min(_THETA_CHUNK, _PIECE_BYTES // max(1, row_bytes)))
        self._number, self._chunk = -1, None

    def rows(self, start: int, stop: int) -> PyTree:
        """theta with leaves `[stop - start, ...]`, of the default floating dtype."""
        parts = []
        while start < stop:
            number, first = divmod(start, self._size)
            if number != self._number:
                self._chunk = jax.device_get(
                    draw_thetas(
                        self._key,
                        number * self._size,
                        prior=self._prior,
                        size=self._size,
                    )
                )
                self._number = number
            last = min(self._size, first + stop - start)
            cut = slice(first, last)
            parts.append(jax.tree.map(lambda leaf, cut=cut: leaf[cut], self._chunk))
            start += last - first
        if len(parts) == 1:
            return parts[0]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnames=("prior", "size"))
def draw_thetas(key: Array, start: Array | int, *, prior: Prior, size: int) -> PyTree:
    """theta of `size` draws from `start` on: the same for every kind of simulator."""

    def draw(index: Array) -> PyTree:
        key_prior, _ = jax.random.split(jax.random.fold_in(key, index))
        theta = prior.sample(key_prior)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), theta)

    return jax.vmap(draw)(start + jnp.arange(size))


def draw_pieces(
    key: Array,
    prior: Prior,
    simulator: PythonSimulator,
    done: np.ndarray,
    *,
    executor: concurrent.futures.Executor | None,
    x_like: PyTree | None,
    failures: Failures,
    idle: Callable[[], None],
) -> Iterator[Rows]:
    """Draw what is missing in `done` `[N]`, in whatever order it is finished.

    Args:
        key: the key of `simulate`.
        prior: the prior of theta.
        simulator: what to run.
        done: which draws are there already.
        executor: where to run, None for processes of our own.
        x_like: one x of zeros that x must look like; None if none is known.
        failures: counts failed draws.
        idle: called when nothing is finished for a while.

    Yields:
        Finished draws.
    """
    token, payload = uuid.uuid4().hex, pickle_function(simulator)
    with contextlib.ExitStack() as stack:
        if executor is None:
            num_workers = num_cores()
            window, payload_sent = _PIECES_PER_WORKER * num_workers, None
            pool: Any = WorkerPool(num_workers, token, payload)
            stack.callback(pool.shutdown, cancel_futures=True)
        else:
            window = _PIECES_PER_WORKER * num_workers_of(executor)
            payload_sent = payload
            pool = executor
        cutter = _Cutter(key, prior, simulator, done, token, payload_sent)
        reader = OutcomeReader(cutter.units, len(done), x_like, failures)
        flight = Flight(pool, window, is_ours=executor is None)
        stack.callback(flight.cancel)
        while cutter.num_left or flight.num_pieces or flight.again:
            while flight.has_room and (cutter.num_left or flight.again):
                if not flight.again:
                    flight.submit(cutter.cut(flight.window, reader.row_bytes))
                else:
                    flight.submit(*flight.again.popleft())
            landed = list(flight.collect())
            if not landed:
                idle()
            for piece, outcome in landed:
                cutter.learn(outcome.seconds / piece.num_units)
                yield from reader.read(piece, outcome)
        yield from reader.finish()


def num_workers_of(executor: Any) -> int:
    """How many workers an executor has, as far as it says so; more may show later."""
    for name in ("_max_workers", "num_workers"):  # the latter of mpi4py
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return count
    client: Any = getattr(executor, "_client", None)  # of dask
    with contextlib.suppress(Exception):
        return sum(client.nthreads().values()) or num_cores()
    return num_cores()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pickle_function(simulator: PythonSimulator) -> bytes:
    # What a script defines is sent by value; in a process that was spawned by
    # multiprocessing its module has another name.
    main = sys.modules.get("__mp_main__")
    try:
        if main is not None:
            cloudpickle.register_pickle_by_value(main)
        return cloudpickle.dumps(simulator.function)
    except Exception as error:
        raise TypeError(
            "the simulator cannot be sent to workers "
            f"({type(error).__name__}: {error}). It uses something that cannot be "
            "copied to another process, such as an open file, a lock or a "
            "connection: make that inside the function."
        ) from error


class _Cutter:
    """Cuts the units that are missing into pieces of about the same time."""

    def __init__(
        self,
        key: Array,
        prior: Prior,
        simulator: PythonSimulator,
        done: np.ndarray,
        token: str,
        payload: bytes | None,
    ):
        self._size = simulator.batch_size or 1
        missing = np.flatnonzero(~done) // self._size
        self.units = np.unique(missing)
        self.num_left = len(self.units)
        self._thetas = _ThetaSource(key, prior)
        self._seconds = 0.0
        entropy = np.asarray(jax.random.key_data(key)).ravel()
        self._common: dict[str, Any] = {
            "token": token,
            "payload": payload,
            "entropy": tuple(int(word) for word in entropy),
            "batch_size": simulator.batch_size,
            "timeout": simulator.timeout,
        }

    def learn(self, seconds: float) -> None:
        """Take note of the seconds that a unit took."""
        self._seconds = (self._seconds + seconds) / 2 if self._seconds else seconds

    def cut(self, window: int, row_bytes: int) -> Piece:
        """The next piece: smaller towards the end, so that no worker is left over."""
        count = 1
        if self._seconds:
            count = int(_SECONDS_PER_PIECE / self._seconds)
            count = min(count, -(-self.num_left // window))
            count = min(count, _PIECE_BYTES // (row_bytes * self._size))
        place = len(self.units) - self.num_left
        units = self.units[place : place + max(1, count)]
        breaks = np.flatnonzero(np.diff(units) > 1)
        count = int(breaks[0]) + 1 if len(breaks) else len(units)
        self.num_left -= count
        first = int(units[0])
        theta = self._thetas.rows(first * self._size, (first + count) * self._size)
        return Piece(theta=theta, first=first, num_units=count, **self._common)
