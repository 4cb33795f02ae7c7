"""Drawing pairs (theta, x) from a prior and a simulator.

Draw `i` uses the keys `split(fold_in(key, i))`, one for the prior and one for
the simulator.  So the random numbers of a draw depend neither on how the work
is cut into chunks nor on how many draws follow it.
"""

import concurrent.futures
import contextlib
import functools
import inspect
import operator
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp

from sbijax.base import Array, Prior, PyTree, SbijaxWarning, Simulations
from sbijax.checks import check_count, check_key, check_record, describe, is_real
from sbijax.data import make_simulations
from sbijax.simulators._identity import identify
from sbijax.simulators._pieces import draw_pieces
from sbijax.simulators._sink import (
    Failures,
    MemorySink,
    Rows,
    Sink,
    automatic_chunk_size,
    fill,
    report_failures,
)
from sbijax.simulators.python import PythonSimulator
from sbijax.simulators.store import StoredSimulations, open_sink

__all__ = ["simulate", "simulate_batch", "simulate_to_store"]

Simulator = Callable[[Array, PyTree], PyTree]
Result = TypeVar("Result")

_EXPECTED = "expected simulator(key, theta) -> x, a JAX function of one draw"


def simulate(
    key: Array,
    prior: Prior,
    simulator: Simulator | PythonSimulator,
    num_simulations: int,
    *,
    chunk_size: int | None = None,
    executor: concurrent.futures.Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Simulations:
    """Draw `num_simulations` pairs from p(theta) p(x | theta).

    A JAX simulator is vmapped and compiled once for each prior, simulator and
    chunk size.  Any other function, wrapped by `python_simulator`, runs in
    workers.  Ctrl-C ends the run early and returns the draws that are finished.
    Inside `jit` or `vmap` use `simulate_batch`, which gives the same draws.

    Args:
        key: one typed PRNG key.
        prior: the prior of theta.
        simulator: `simulator(key, theta) -> x`, a JAX function of one draw; x
            is any pytree of arrays whose shapes do not depend on theta.  Or the
            record of `python_simulator`.
        num_simulations: `N`, at least 1.
        chunk_size: draws computed at a time, at most, and those of one file of
            the store.  The random numbers do not depend on it.  By default about
            64 MB of theta and x, and 4,096 draws at most.
        executor: where the function of `python_simulator` runs: any
            `concurrent.futures.Executor`, such as `client.get_executor()` of
            dask.distributed or an `MPIPoolExecutor` of mpi4py.  By default
            processes of its own, one for each core.  The draws do not depend
            on it.
        store: folder that finished draws are written to as they come.  If it
            holds draws of this call already, the run goes on from there, with a
            larger `num_simulations` too, and ends with the same bits.  All of them
            are read at the end; `simulate_to_store` leaves them where they are.
        progress: show a bar on stderr when the run lasts more than a second.

    Returns:
        The simulations, leaves `[N, ...]`.  Draws that failed or have a non-finite
        entry in theta or x have weight 0 and are reported in an `SbijaxWarning`.

    Raises:
        TypeError: an argument is not what is expected, the simulator cannot be
            traced by JAX, or cannot be sent to workers.
        ValueError: a count below 1, all draws failed, or the store is that of
            another prior, simulator or key, or damaged.
        RuntimeError: another process writes to the store, or the executor
            broke down.
        OSError: the store cannot be written to; what is in it is complete.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key)
        >>> sims = sj.simulate(jax.random.key(0), prior, simulator, 100)
        >>> sims.x.shape
        (100,)
    """
    sims = _simulate(
        key,
        prior,
        simulator,
        num_simulations,
        chunk_size=chunk_size,
        executor=executor,
        store=store,
        progress=progress,
        collect=lambda sink: sink.result(),
    )
    return jax.tree.map(jnp.asarray, sims)


def simulate_to_store(
    key: Array,
    prior: Prior,
    simulator: Simulator | PythonSimulator,
    num_simulations: int,
    store: str | os.PathLike[str],
    *,
    chunk_size: int | None = None,
    executor: concurrent.futures.Executor | None = None,
    progress: bool = True,
) -> StoredSimulations:
    """`simulate` for draws that exceed memory: they stay in the folder.

    The draws are those of `simulate(..., store=store)`, and it goes on from there or
    is extended in the same way.  `train` reads them as it learns.  In memory are a
    few chunks at a time, and some 20 bytes a draw to know which are finished.

    Args:
        key: as in `simulate`, and so are the others.
        prior: the prior of theta.
        simulator: a JAX function of one draw or a `python_simulator`.
        num_simulations: `N`, at least 1.
        store: folder that the draws are written to.
        chunk_size: draws computed at a time, and those of one file of the store.
        executor: where the function of `python_simulator` runs.
        progress: show a bar on stderr when the run lasts more than a second.

    Returns:
        The first `N` draws of the store, as far as they are finished, to be read by
        slices.  Those that failed have weight 0 and are reported in an
        `SbijaxWarning`.

    Raises:
        TypeError: as in `simulate`, or `store` is not a path.
        ValueError: as in `simulate`, and so are `RuntimeError` and `OSError`.

    Example:
        >>> import jax, pathlib, tempfile, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "sims"
        >>> stored = sj.simulate_to_store(
        ...     jax.random.key(0), prior, simulator, 100, folder
        ... )
        >>> len(stored), stored[10:20].x.shape
        (100, (10,))
    """
    if not isinstance(store, str | os.PathLike):
        raise TypeError(f"store must be the path of a folder, got {store!r}.")
    _simulate(
        key,
        prior,
        simulator,
        num_simulations,
        chunk_size=chunk_size,
        executor=executor,
        store=store,
        progress=progress,
        collect=lambda sink: None,
    )
    return StoredSimulations(pathlib.Path(store), operator.index(num_simulations))


def _simulate(
    key: Array,
    prior: Prior,
    simulator: Simulator | PythonSimulator,
    num_simulations: int,
    *,
    chunk_size: int | None,
    executor: concurrent.futures.Executor | None,
    store: str | os.PathLike[str] | None,
    progress: bool,
    collect: Callable[[Sink], Result],
) -> Result:
    """Draw what is missing, and return what `collect` takes from the sink."""
    if isinstance(key, jax.core.Tracer):
        raise TypeError(
            "simulate runs chunk by chunk on the host; inside jit or vmap use "
            "simulate_batch, which gives the same draws."
        )
    _check_arguments(key, prior, simulator)
    _check_executor(simulator, executor)
    size = check_count(num_simulations, "num_simulations")
    if chunk_size is not None:
        chunk_size = check_count(chunk_size, "chunk_size")
    failures = Failures()
    with _open_sink(key, prior, simulator, size, chunk_size, store) as sink:
        if isinstance(simulator, PythonSimulator):
            pieces = draw_pieces(
                key,
                prior,
                simulator,
                sink.done,
                executor=executor,
                x_like=sink.x_like,
                failures=failures,
                idle=sink.flush,
            )
        else:
            pieces = _draw_chunks(key, prior, simulator, sink)
        try:
            fill(sink, pieces, progress)
        finally:
            sink.flush()
        result = collect(sink)
        report = report_failures(sink, failures)
    if report is not None:
        warnings.warn(report, SbijaxWarning, stacklevel=3)
    return result


def simulate_batch(
    key: Array, prior: Prior, simulator: Simulator, num_simulations: int
) -> Simulations:
    """Draw `num_simulations` pairs at once: the pure form of `simulate`.

    It can be used inside `jit`, `vmap` and `scan`; nothing is reported, and
    memory grows with `num_simulations`.

    Args:
        key: one typed PRNG key.
        prior: the prior of theta.
        simulator: `simulator(key, theta) -> x`, a JAX function of one draw.
        num_simulations: `N`, at least 1; static.

    Returns:
        The simulations, leaves `[N, ...]`; failed draws have weight 0.

    Raises:
        TypeError: `key`, `prior`, `simulator` or the count is not what is
            expected, or the simulator cannot be traced by JAX.
        ValueError: `num_simulations` is below 1.

    Example:
        >>> import jax
        >>> from sbijax.simulators import simulate_batch, two_moons
        >>> task = two_moons()
        >>> def draw(key):
        ...     return simulate_batch(key, task.prior, task.simulator, 5)
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> jax.vmap(draw)(keys).x.shape
        (3, 5, 2)
    """
    if isinstance(simulator, PythonSimulator):
        raise TypeError(
            "simulate_batch and training on fresh simulations compile the simulator, "
            "which has to be a JAX function; simulate runs a PythonSimulator."
        )
    _check_arguments(key, prior, simulator)
    size = check_count(num_simulations, "num_simulations")
    return _draw_rows(key, jnp.arange(size), prior, simulator)


def _draw_row(
    key: Array, index: Array, prior: Prior, simulator: Simulator
) -> tuple[PyTree, PyTree]:
    key_prior, key_simulator = jax.random.split(jax.random.fold_in(key, index))
    theta = prior.sample(key_prior)
    return theta, _call_simulator(key_simulator, theta, simulator)


def _call_simulator(key: Array, theta: PyTree, simulator: Simulator) -> PyTree:
    """Trace the simulator, and say what is wrong if that cannot be done."""
    try:
        x = simulator(key, theta)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "simulator cannot be compiled by JAX: it uses the values of key or "
            "theta where JAX needs to know them beforehand (in an if, a shape, an "
            "index or a numpy function). Use jax.numpy, jnp.where, jax.lax.cond "
            f"and fixed shapes; {_EXPECTED}. Functions that are not JAX run in "
            "workers: see python_simulator."
        ) from error
    except Exception as error:
        error.add_note(
            f"Raised in the simulator, with theta = {describe(theta)}; {_EXPECTED} "
            "whose shapes do not depend on the values of theta."
        )
        raise
    leaves = jax.tree.leaves(x)
    if not leaves or not all(map(is_real, leaves)):
        raise TypeError(
            "simulator must return an array of real numbers or a pytree of such "
            f"arrays, got {jax.tree.map(describe, x)}; {_EXPECTED}."
        )
    if not isinstance(x, list):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "simulator returned a list that is not one array: "
            f"{describe(x)}; return a dict or a tuple for several."
        ) from error


def _draw_rows(
    key: Array, indices: Array, prior: Prior, simulator: Simulator
) -> Simulations:
    draw = jax.vmap(lambda index: _draw_row(key, index, prior, simulator))
    return make_simulations(*draw(indices))


@functools.partial(jax.jit, static_argnames=("prior", "simulator", "chunk_size"))
def _draw_chunk(
    key: Array, start: Array, *, prior: Prior, simulator: Simulator, chunk_size: int
) -> Simulations:
    return _draw_rows(key, start + jnp.arange(chunk_size), prior, simulator)


@contextlib.contextmanager
def _open_sink(
    key: Array,
    prior: Prior,
    simulator: Simulator | PythonSimulator,
    size: int,
    chunk_size: int | None,
    store: str | os.PathLike[str] | None,
) -> Iterator[Sink]:
    """Where the draws go; for a JAX simulator it knows what they look like."""
    with contextlib.ExitStack() as stack:
        sink: Sink = MemorySink(size)
        if store is not None:
            identity = identify(key, prior, simulator)
            sink = stack.enter_context(open_sink(store, identity, size, chunk_size))
        if not isinstance(simulator, PythonSimulator):
            row = _abstract_rows(key, prior, simulator, 1)
            chunk_size = sink.chunk_size or chunk_size
            chunk_size = chunk_size or min(size, automatic_chunk_size(row))
            if store is None:
                chunk_size = min(chunk_size, size)
            sink.create(row, chunk_size)
        yield sink


def _draw_chunks(
    key: Array, prior: Prior, simulator: Simulator, sink: Sink
) -> Iterator[Rows]:
    """Draw the chunks that have rows missing; the last one goes beyond the end.

    So no program is compiled for a shorter one, and a draw has the same place in
    its chunk, and the same bits, however many there are.
    """
    chunk_size = sink.chunk_size
    assert chunk_size is not None
    draw = functools.partial(
        _draw_chunk, prior=prior, simulator=simulator, chunk_size=chunk_size
    )
    for start in range(0, len(sink.done), chunk_size):
        if not sink.done[start : start + chunk_size].all():
            yield Rows(start, jax.device_get(draw(key, start)))


def _check_executor(simulator: Simulator | PythonSimulator, executor: object) -> None:
    if executor is None:
        return
    if not isinstance(simulator, PythonSimulator):
        raise TypeError(
            "executor is for simulators that are not JAX: a JAX simulator is compiled "
            "and runs on the devices of JAX. Leave executor out, or wrap a Python "
            "function: python_simulator(function)."
        )
    if not isinstance(executor, concurrent.futures.Executor):
        raise TypeError(
            "executor must be a concurrent.futures.Executor, got "
            f"{type(executor).__name__}. Of a dask client, give client.get_executor()."
        )


def _check_arguments(
    key: Array, prior: Prior, simulator: Simulator | PythonSimulator
) -> None:
    check_key(key)
    check_record(
        prior,
        Prior,
        "prior",
        "Make one with sbijax.make_prior from a numpyro distribution, a dict of them "
        "or a model.",
    )
    if isinstance(simulator, PythonSimulator):
        return
    if not callable(simulator):
        raise TypeError(
            f"simulator must be a function, got {type(simulator).__name__}; "
            f"{_EXPECTED}."
        )
    try:
        hash(simulator)
    except TypeError as error:
        raise TypeError(
            f"simulator of type {type(simulator).__name__} is not hashable, so its "
            "compiled program could not be found again. Wrap it: def simulate_one("
            "key, theta): return simulator(key, theta)."
        ) from error
    try:
        signature = inspect.signature(simulator)
    except ValueError:  # compiled functions may have none to look at
        return
    try:
        signature.bind(key, None)
    except TypeError as error:
        raise TypeError(
            f"simulator has the signature {signature}, {_EXPECTED}."
        ) from error


def _abstract_rows(
    key: Array, prior: Prior, simulator: Simulator, chunk_size: int
) -> Simulations:
    """Shapes and dtypes of one chunk; traces the simulator, runs nothing."""
    return _draw_chunk.eval_shape(
        key, 0, prior=prior, simulator=simulator, chunk_size=chunk_size
    )
