"""Pieces of work on their way through an executor."""

import collections
import queue
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from typing import Any, NamedTuple

import jax

from sbijax.simulators._pool import WorkerDied
from sbijax.worker import Outcome, Piece, SimulatorFault, run_piece

__all__ = ["Flight"]

_MAX_IN_FLIGHT = 10_000
_SECONDS_TO_IDLE = 1.0


class _Sent(NamedTuple):
    piece: Piece
    is_retry: bool
    time: float


class Flight:
    """Pieces that are with the executor, and those that have to go there again.

    A piece whose worker died is sent again unit by unit, and a unit of which a second
    worker dies is to blame.  An executor that is not ours may name pieces that were
    only near, and may lose results together with the worker that held them; there,
    the second time, nothing else is in flight.
    """

    def __init__(self, pool: Any, window: int, is_ours: bool):
        self._pool, self.window, self._is_ours = pool, window, is_ours
        self._sent: dict[Any, _Sent] = {}
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.again: collections.deque[tuple[Piece, bool]] = collections.deque()

    @property
    def num_pieces(self) -> int:
        """How many pieces are with the executor."""
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether the executor should get another one."""
        waiting = [self.again[0][1]] if self.again else []
        running = [next(iter(self._sent.values())).is_retry] if self._sent else []
        if not self._is_ours and any(waiting + running):
            return not self._sent
        return len(self._sent) < self.window

    def submit(self, piece: Piece, is_retry: bool = False) -> None:
        """Give a piece to the executor."""
        future = self._pool.submit(run_piece, piece)
        self._sent[future] = _Sent(piece, is_retry, time.perf_counter())
        future.add_done_callback(self._finished.put)

    def collect(self) -> Iterator[tuple[Piece, Outcome]]:
        """Wait a while for the next piece, and hand out what it came to."""
        try:
            future = self._finished.get(timeout=_SECONDS_TO_IDLE)
        except queue.Empty:
            return
        sent = self._sent.pop(future)
        piece = sent.piece
        try:
            outcome = future.result()
        except Exception as error:
            is_lost = not (self._is_ours or sent.is_retry or _is_final(error))
            if not (is_lost or _blames_draws(error)):
                raise _explain(error) from error
            if not sent.is_retry or piece.num_units > 1:
                is_retry = not self._is_ours or piece.num_units == 1
                self.again.extend((unit, is_retry) for unit in _split(piece))
                return
            outcome = Outcome([], [(0, str(error) or type(error).__name__)], 0.0)
        else:
            # One that did not have to wait shows that there are more workers.
            waited = time.perf_counter() - sent.time - outcome.seconds
            if not self._is_ours and waited < outcome.seconds:
                self.window = min(self.window + 1, _MAX_IN_FLIGHT)
        yield piece, outcome

    def cancel(self) -> None:
        """Take back what has not begun."""
        for future in self._sent:
            future.cancel()


def _blames_draws(error: Exception) -> bool:
    """Whether an error says that a piece ended its worker; dask has its own."""
    return isinstance(error, WorkerDied) or type(error).__name__ == "KilledWorker"


def _is_final(error: Exception) -> bool:
    """Whether a second try is in vain: a wrong simulator, or a broken executor."""
    return isinstance(error, SimulatorFault | BrokenExecutor)


def _explain(error: Exception) -> Exception:
    if isinstance(error, SimulatorFault):
        return TypeError(str(error))
    return RuntimeError(
        f"the executor could not run the simulator ({type(error).__name__}: {error}). "
        "Its workers need sbijax, cloudpickle and what the simulator imports, in the "
        "same versions as here. What is finished is kept where a store was given."
    )


def _split(piece: Piece) -> Iterator[Piece]:
    size = piece.batch_size or 1
    for i in range(piece.num_units):
        cut = slice(i * size, (i + 1) * size)
        theta = jax.tree.map(lambda leaf, cut=cut: leaf[cut], piece.theta)
        yield piece._replace(
            theta=theta,
            first=piece.first + i,
            num_units=1,
            attempt=piece.attempt + 1,
        )
