"""What runs in a worker process: draws of a simulator that is not JAX.

Workers load this module, numpy and the simulator, and nothing else of this
package: JAX would take a second and hundreds of megabytes in each.  So trees of
arrays are walked here by hand.

A unit of work is one draw, or one batch of them.  Unit `j` has its own generator,
seeded by (key, j), so its x depends on neither the worker nor the order.
"""

import contextlib
import faulthandler
import functools
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Block", "Outcome", "Piece", "SimulatorFault", "run_piece", "serve"]

Tree = Any

_MESSAGE_LENGTH = 200
_GRACE = 1.0  # seconds, and half the timeout, before a worker ends itself


class Piece(NamedTuple):
    """Consecutive units of work for one worker.

    `token` names the function; `payload` is its pickle, or None where `serve` has
    loaded it.  `theta` has leaves `[num_units, ...]`, or `[num_units * batch_size,
    ...]` in batches.  Unit `first + i` is seeded by `(*entropy, first + i)`.
    `attempt` tells pieces apart that are sent again: dask knows calls by arguments.
    """

    token: str
    payload: bytes | None
    theta: Tree
    first: int
    num_units: int
    entropy: tuple[int, ...]
    batch_size: int | None
    timeout: float | None
    attempt: int = 0


class Block(NamedTuple):
    """x of the units at `positions` of a piece, leaves `[rows, ...]`."""

    positions: list[int]
    x: Tree


class Outcome(NamedTuple):
    """What came of a piece: x of equal shapes in a `Block`, and what failed.

    `failures` are pairs of a position and a message, `seconds` the time it took.
    """

    blocks: list[Block]
    failures: list[tuple[int, str]]
    seconds: float


class SimulatorFault(Exception):
    """Something that is wrong with every draw; it stops the run."""


class _TimedOut(BaseException):
    """Raised inside a draw that takes too long; `except Exception` misses it."""


def run_piece(piece: Piece, *, expendable: bool = False) -> Outcome:
    """Run the units of a piece one after the other.

    Args:
        piece: what to run.
        expendable: whether this process may end itself when a draw hangs in
            code that no exception can enter.

    Returns:
        x and failures.

    Raises:
        SimulatorFault: the function cannot be loaded here, or a batch comes back
            with another number of rows.

    Example:
        >>> import pickle, numpy as np
        >>> from sbijax.worker import Piece, run_piece
        >>> payload = pickle.dumps(np.random.Generator.normal)
        >>> piece = Piece("f", payload, np.zeros(3), 0, 3, (1,), None, None)
        >>> outcome = run_piece(piece)
        >>> outcome.blocks[0].x.shape
        (3,)
    """
    start = time.perf_counter()
    function = _load(piece.token, piece.payload)
    found: dict[Any, tuple[list[int], Tree, list[list[np.ndarray]]]] = {}
    failures = []
    for i in range(piece.num_units):
        seed = np.random.SeedSequence(piece.entropy, spawn_key=(piece.first + i,))
        call = functools.partial(
            function, np.random.default_rng(seed), _rows_of(piece, i)
        )
        try:
            with _time_limit(piece.timeout, expendable):
                x = _run(call, piece.timeout)
            x = np.asarray(x) if isinstance(x, list) else x
            leaves = _checked_leaves(x, piece.batch_size)
        except _TimedOut:
            failures.append((i, f"took longer than timeout={piece.timeout:g} s"))
        except (SimulatorFault, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: it ends the draw only
            failures.append((i, _say(error)))
        else:
            spec = _spec(x, piece.batch_size is not None)
            if spec not in found:
                _check_sendable(x)
            positions, _, rows = found.setdefault(spec, ([], x, []))
            positions.append(i)
            rows.append(leaves)
    join = np.stack if piece.batch_size is None else np.concatenate
    blocks = [
        Block(positions, _rebuild(x, iter([join(c) for c in zip(*rows, strict=True)])))
        for positions, x, rows in found.values()
    ]
    return Outcome(blocks, failures, time.perf_counter() - start)


def serve(connection: Any, token: str, payload: bytes) -> None:
    """Answer pieces from a connection until it closes: the life of a worker.

    The first answer is None, or the fault that keeps the function from loading.
    """
    if hasattr(os, "setsid"):  # what the draws start is ended with the worker
        with contextlib.suppress(OSError):
            os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _load(token, payload)
    except SimulatorFault as fault:
        connection.send(fault)
        return
    connection.send(None)
    with contextlib.suppress(EOFError, OSError):  # nobody is there any more
        while True:
            piece = connection.recv()
            try:
                answer: Any = run_piece(piece, expendable=True)
            except SimulatorFault as fault:
                answer = fault
            connection.send(answer)


def _end_with_parent() -> None:
    """A parent that was killed cannot end a draw that hangs."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


@functools.lru_cache(maxsize=1)
def _loaded(token: str) -> list[Callable[..., Any]]:
    """The function of that name, once it is there."""
    return []


def _load(token: str, payload: bytes | None) -> Callable[..., Any]:
    loaded = _loaded(token)
    if not loaded:
        try:
            loaded.append(pickle.loads(payload or b""))
        except BaseException as error:
            raise SimulatorFault(
                f"the simulator cannot be loaded in a worker ({_say(error)}). What "
                "it imports must be installed there, and must not start simulations "
                "when it is imported."
            ) from None
    return loaded[0]


def _rows_of(piece: Piece, i: int) -> Tree:
    """A copy of theta of one unit: the simulator may write into it."""
    size = piece.batch_size
    cut = i if size is None else slice(i * size, (i + 1) * size)
    return _rebuild(piece.theta, (leaf[cut].copy() for leaf in _leaves(piece.theta)))


def _checked_leaves(x: Tree, batch_size: int | None) -> list[np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in _leaves(x)]
    if not leaves or not all(leaf.dtype.kind in "biuf" for leaf in leaves):
        found = ", ".join(str(leaf.dtype) for leaf in leaves) or type(x).__name__
        raise TypeError(f"x must hold real numbers, got {found}")
    for leaf in leaves if batch_size is not None else ():
        if leaf.shape[:1] != (batch_size,):
            raise SimulatorFault(
                f"the simulator gets theta with leaves [{batch_size}, ...] and must "
                f"return leaves [{batch_size}, ...], got shape {leaf.shape}. For one "
                "draw at a time leave batch_size out of python_simulator."
            )
    return leaves


def _check_sendable(x: Tree) -> None:
    try:
        pickle.dumps(_rebuild(x, itertools.repeat(0)))
    except Exception as error:
        raise SimulatorFault(
            f"x cannot be sent back from a worker ({_say(error)}). Return arrays, "
            "dicts, tuples, or classes that a module defines."
        ) from None


def _run(call: Callable[[], Tree], timeout: float | None) -> Tree:
    """Call, in a thread that can be left behind where no signal can end the call."""
    if timeout is None or _has_signals():
        return call()
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append((call(), None))
        except BaseException as error:
            answer.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answer:
        raise _TimedOut
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def _has_signals() -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and hasattr(signal, "setitimer")


@contextlib.contextmanager
def _time_limit(timeout: float | None, expendable: bool) -> Iterator[None]:
    """Raise `_TimedOut` in the main thread, and end the process if that is in vain."""
    if timeout is None or not _has_signals():
        yield
        return

    def ring(signum: int, frame: Any) -> None:
        raise _TimedOut

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        if expendable:
            limit = 1.5 * timeout + _GRACE
            faulthandler.dump_traceback_later(limit, exit=True, file=_nowhere())
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        if expendable:
            faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


@functools.cache
def _nowhere() -> Any:
    return open(os.devnull, "w")


def _say(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    line = " ".join(text.split())
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."


def _children(tree: Tree) -> list[Tree] | None:
    """Parts of a node in the order of JAX; None for a leaf."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [tree[name] for name in sorted(tree)]
    return list(tree) if isinstance(tree, tuple | list) else None


def _leaves(tree: Tree) -> Iterator[Any]:
    children = _children(tree)
    if children is None:
        yield tree
    else:
        for child in children:
            yield from _leaves(child)


def _rebuild(tree: Tree, leaves: Iterator[Any]) -> Tree:
    """The tree with other leaves, in the order of `_leaves`."""
    children = _children(tree)
    if tree is None:
        return None
    if children is None:
        return next(leaves)
    parts = [_rebuild(child, leaves) for child in children]
    if isinstance(tree, dict):
        return dict(zip(sorted(tree), parts, strict=True))
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _spec(tree: Tree, batched: bool) -> Any:
    """Structure and shapes of one draw, as something that can be compared."""
    children = _children(tree)
    if tree is None:
        return None
    if children is None:
        return np.shape(tree)[1:] if batched else np.shape(tree)
    names = tuple(sorted(tree)) if isinstance(tree, dict) else len(children)
    return (type(tree), names, *(_spec(child, batched) for child in children))
