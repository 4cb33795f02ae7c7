"""Python simulators for compiled programs, which call back to workers."""

import concurrent.futures
import contextlib
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, PyTree
from sbijax.checks import check_record
from sbijax.simulators._pieces import num_cores, num_workers_of, pickle_function
from sbijax.simulators._pool import WorkerDied, WorkerPool
from sbijax.simulators.python import PythonSimulator
from sbijax.worker import Outcome, Piece, run_piece

__all__ = ["in_workers"]

_PIECES_PER_WORKER = 4


@contextlib.contextmanager
def in_workers(
    simulator: PythonSimulator,
    x: PyTree,
    *,
    executor: concurrent.futures.Executor | None = None,
) -> Iterator[Callable[[Array, PyTree], PyTree]]:
    """Lend a Python simulator to compiled methods, such as `make_smc_abc`.

    Within the block it is a JAX simulator: a compiled program hands theta of all
    draws of a population to the workers and waits for them.  Draws do not depend on
    the number of workers.  A draw that fails is NaN, and counts as failed there.

    Args:
        simulator: made by `python_simulator`.
        x: one x, for its structure and shapes, such as a row of simulations.
        executor: where to run, see `simulate`.

    Yields:
        `simulator(key, theta) -> x`, to be called under `jit` and `vmap`.

    Raises:
        TypeError: an argument is not of its kind, or the function cannot be sent to
            workers.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> python = sj.python_simulator(lambda rng, theta: theta + rng.normal())
        >>> sims = sj.simulate(jax.random.key(0), prior, python, 100)
        >>> with sj.simulators.in_workers(python, 0.0) as simulator:
        ...     abc = sj.make_smc_abc(
        ...         prior, simulator, num_simulations=1_000, num_particles=200
        ...     )
        ...     posterior = sj.infer(abc, abc.init(jax.random.key(1), sims), 1.0)
        ...     theta = posterior.sample(jax.random.key(2), 50)
        >>> theta.shape
        (50,)
    """
    check_record(
        simulator, PythonSimulator, "simulator", "Make one with python_simulator."
    )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(float)), x
    )
    token, payload = uuid.uuid4().hex, pickle_function(simulator)
    with contextlib.ExitStack() as stack:
        pool: Any = executor
        num_workers = num_cores() if executor is None else num_workers_of(executor)
        if executor is None:
            pool = WorkerPool(num_workers, token, payload)
            stack.callback(pool.shutdown, cancel_futures=True)
        sent = None if executor is None else payload

        def run(seeds: Any, theta: PyTree) -> PyTree:
            return _run(
                simulator, pool, (token, sent), num_workers, np.asarray(seeds),
                jax.tree.map(np.asarray, theta), like,
            )  # fmt: skip

        def simulate(key: Array, theta: PyTree) -> PyTree:
            seed = jax.random.bits(key, (2,), "uint32")
            return jax.pure_callback(
                run, like, seed, theta, vmap_method="broadcast_all"
            )

        yield simulate


def _run(
    simulator: PythonSimulator,
    pool: Any,
    name: tuple[str, bytes | None],
    num_workers: int,
    seeds: np.ndarray,
    theta: PyTree,
    like: PyTree,
) -> PyTree:
    """x for theta with the leading axes of `seeds` `[..., 2]`."""
    lead = seeds.shape[:-1]
    size, batch_size = math.prod(lead), simulator.batch_size or 1
    num_units = -(-size // batch_size)
    padded = np.minimum(np.arange(num_units * batch_size), size - 1)
    rows = jax.tree.map(
        lambda leaf: leaf.reshape(size, *leaf.shape[len(lead) :])[padded], theta
    )
    entropy = tuple(int(word) for word in seeds.reshape(-1, 2)[0])
    length = -(-num_units // (_PIECES_PER_WORKER * num_workers))
    futures = {}
    for first in range(0, num_units, length):
        count = min(length, num_units - first)
        cut = slice(first * batch_size, (first + count) * batch_size)
        piece = Piece(
            token=name[0],
            payload=name[1],
            theta=jax.tree.map(lambda leaf, cut=cut: leaf[cut], rows),
            first=first,
            num_units=count,
            entropy=entropy,
            batch_size=simulator.batch_size,
            timeout=simulator.timeout,
        )
        futures[first] = pool.submit(run_piece, piece)
    shapes, structure = jax.tree.flatten(like)
    buffers = [
        np.full((num_units * batch_size, *leaf.shape), np.nan, leaf.dtype)
        for leaf in shapes
    ]
    for first, future in futures.items():
        with contextlib.suppress(WorkerDied):  # its draws stay NaN
            _fill(buffers, structure, future.result(), first, batch_size)
    return jax.tree.unflatten(
        structure, [b[:size].reshape(*lead, *b.shape[1:]) for b in buffers]
    )


def _fill(
    buffers: list[np.ndarray],
    structure: Any,
    outcome: Outcome,
    first: int,
    batch_size: int,
) -> None:
    """Write the draws that succeeded and have the shapes expected."""
    for block in outcome.blocks:
        leaves, found = jax.tree.flatten(block.x)
        shapes = [np.shape(leaf)[1:] for leaf in leaves]
        if found != structure or shapes != [b.shape[1:] for b in buffers]:
            continue
        units = first + np.asarray(block.positions)
        rows = (units[:, None] * batch_size + np.arange(batch_size)).ravel()
        for buffer, leaf in zip(buffers, leaves, strict=True):
            buffer[rows] = leaf
