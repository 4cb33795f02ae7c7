"""Worker processes that may die: the executor `simulate` makes for itself.

`concurrent.futures.ProcessPoolExecutor` loses every piece in flight when one worker
dies, and does not say which draw killed it.  Here each process is driven by a thread
of its own: the piece a worker died of is known, and only that worker is replaced.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from sbijax.worker import SimulatorFault, run_piece, serve

__all__ = ["WorkerDied", "WorkerPool"]

_start_lock = threading.Lock()
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerDied(Exception):
    """The process that ran a piece ended before it answered."""


class WorkerPool(concurrent.futures.Executor):
    """Spawned processes that run pieces of one simulator.

    The processes do not import the caller's main module: a script needs no
    `if __name__ == "__main__"`, and workers load only what the simulator needs.

    Args:
        num_workers: how many processes.
        token: name of the simulator in each `Piece`.
        payload: the simulator, pickled.
    """

    def __init__(self, num_workers: int, token: str, payload: bytes):
        self._args = token, payload
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closing = False
        self._processes: set[Any] = set()
        self._threads = [
            threading.Thread(target=self._drive, daemon=True)
            for _ in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(  # type: ignore[override]
        self, fn: Callable[..., Any], /, *args: Any
    ) -> concurrent.futures.Future:
        """Queue `run_piece(piece)`."""
        assert fn is run_piece
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._tasks.put((future, *args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, at once with `cancel_futures`."""
        for _ in self._threads:
            self._tasks.put(None)
        if cancel_futures:
            with _start_lock:
                self._closing = True
            for process in list(self._processes):
                _kill(process)
        if wait:
            for thread in self._threads:
                thread.join()

    def _drive(self) -> None:
        """Keep one process alive and hand it pieces, until told to stop."""
        worker = None
        with contextlib.suppress(SimulatorFault):  # the first piece says it
            worker = self._start()
        while (task := self._tasks.get()) is not None and not self._closing:
            future, piece = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._start()
                future.set_result(self._ask(*worker, piece))
            except SimulatorFault as fault:
                future.set_exception(fault)
            except WorkerDied as death:
                worker = None
                future.set_exception(death)
        if worker is not None:
            process, connection = worker
            connection.close()
            self._end(process)

    def _start(self) -> tuple[Any, Any]:
        """A process that has loaded the simulator, and the connection to it."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *self._args))
        with _start_lock, _quiet_start():
            if self._closing:
                raise SimulatorFault("the workers are being ended.")
            process.start()
            self._processes.add(process)
        theirs.close()
        try:
            fault = _receive(process, ours)
        except EOFError:
            self._end(process)
            raise SimulatorFault(
                "a worker process ended while it started and loaded the simulator "
                f"(exit code {process.exitcode})."
            ) from None
        if fault is not None:
            self._end(process)
            raise fault
        return process, ours

    def _ask(self, process: Any, connection: Any, piece: Any) -> Any:
        """The outcome of a piece; the worker is gone after a `WorkerDied`."""
        try:
            connection.send(piece)
            answer = _receive(process, connection)
        except (EOFError, OSError):
            self._end(process)
            raise WorkerDied(_say_death(process.exitcode, piece.timeout)) from None
        if isinstance(answer, SimulatorFault):
            raise answer
        return answer

    def _end(self, process: Any) -> None:
        process.join(1.0)
        if process.is_alive():
            _kill(process)
            process.join()
        self._processes.discard(process)


def _receive(process: Any, connection: Any) -> Any:
    """The next answer; what a dead worker has forked may hold its end open."""
    while not connection.poll(1.0):
        if not process.is_alive() and not connection.poll():
            raise EOFError
    return connection.recv()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Start processes without the main module, and with one thread for BLAS each."""
    main = sys.modules["__main__"]
    unset = [name for name in _THREAD_VARIABLES if name not in os.environ]
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(dict.fromkeys(unset, "1"))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name in unset:
            del os.environ[name]


def _kill(process: Any) -> None:
    """End a worker and what its draws have started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg") and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _say_death(code: int | None, timeout: float | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed its worker ({signal.Signals(-code).name})"
    if code == 1 and timeout is not None:  # it has ended itself, see `run_piece`
        return f"took longer than timeout={timeout:g} s"
    return f"ended its worker (exit code {code})"
