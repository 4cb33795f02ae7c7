"""Drawing pairs (theta, x) from a prior and a simulator.

Draw `i` uses the keys `split(fold_in(key, i))`, one for the prior and one for
the simulator.  So the random numbers of a draw depend neither on how the work
is cut into chunks nor on how many draws follow it.
"""

import functools
import inspect
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Prior, PyTree, SbijaxWarning, Simulations
from sbijax.checks import check_count, check_key, check_record, describe, is_real
from sbijax.data import make_simulations

__all__ = ["simulate", "simulate_batch"]

Simulator = Callable[[Array, PyTree], PyTree]

_CHUNK_BYTES = 64 * 2**20
_MAX_CHUNK_SIZE = 4096  # larger chunks are not faster and show no progress
_PROGRESS_DELAY = 1.0  # seconds; shorter runs show no bar
_EXPECTED = "expected simulator(key, theta) -> x, a JAX function of one draw"


def simulate(
    key: Array,
    prior: Prior,
    simulator: Simulator,
    num_simulations: int,
    *,
    chunk_size: int | None = None,
    progress: bool = True,
) -> Simulations:
    """Draw `num_simulations` pairs from p(theta) p(x | theta), in chunks.

    The simulator is vmapped and compiled once for each prior, simulator and
    chunk size.  Ctrl-C ends the run early and returns the chunks that are
    finished.  Inside `jit` or `vmap` use `simulate_batch`, which gives the
    same draws.

    Args:
        key: one typed PRNG key.
        prior: the prior of theta.
        simulator: `simulator(key, theta) -> x`, a JAX function of one draw; x
            is any pytree of arrays whose shapes do not depend on theta.
        num_simulations: `N`, at least 1.
        chunk_size: draws computed at a time, at most; it bounds memory.  The
            random numbers do not depend on it.  By default about 64 MB of
            theta and x, and 4,096 draws at most.
        progress: show a bar on stderr when the run lasts more than a second.

    Returns:
        The simulations, leaves `[N, ...]`.  Draws with a non-finite entry in
        theta or x have weight 0 and are reported in an `SbijaxWarning`.

    Raises:
        TypeError: `key`, `prior`, `simulator` or a count is not what is
            expected, or the simulator cannot be traced by JAX.
        ValueError: a count below 1, or all draws failed.

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
    if isinstance(key, jax.core.Tracer):
        raise TypeError(
            "simulate runs chunk by chunk on the host; inside jit or vmap use "
            "simulate_batch, which gives the same draws."
        )
    _check_arguments(key, prior, simulator)
    size = check_count(num_simulations, "num_simulations")
    if chunk_size is None:
        chunk_size = _automatic_chunk_size(_abstract_rows(key, prior, simulator, 1))
    chunk_size = min(check_count(chunk_size, "chunk_size"), size)
    rows = _abstract_rows(key, prior, simulator, chunk_size)

    buffers = jax.tree.map(lambda a: np.empty((size, *a.shape[1:]), a.dtype), rows)
    num_done = _fill(buffers, key, prior, simulator, chunk_size, progress)
    if num_done < size:
        buffers = jax.tree.map(lambda buffer: buffer[:num_done], buffers)
        warnings.warn(
            f"simulate was interrupted: the {num_done} of {size} simulations "
            "that were finished are returned.",
            SbijaxWarning,
            stacklevel=2,
        )
    report = _report_failures(buffers)
    if report is not None:
        warnings.warn(report, SbijaxWarning, stacklevel=2)
    return jax.tree.map(jnp.asarray, buffers)


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
            f"and fixed shapes; {_EXPECTED}."
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


def _fill(
    buffers: Simulations,
    key: Array,
    prior: Prior,
    simulator: Simulator,
    chunk_size: int,
    progress: bool,
) -> int:
    """Fill the buffers chunk by chunk and return how many rows are done."""
    from tqdm import tqdm

    num_done, num_failed, size = 0, 0, len(buffers.weight)
    draw = functools.partial(
        _draw_chunk, prior=prior, simulator=simulator, chunk_size=chunk_size
    )
    with tqdm(
        total=size,
        desc="simulate",
        unit="draw",
        unit_scale=True,
        delay=_PROGRESS_DELAY,
        disable=not progress,
    ) as bar:
        try:
            while num_done < size:
                # The last chunk ends at the last row: it repeats some draws,
                # and no program is compiled for a shorter one.
                start = min(num_done, size - chunk_size)
                stop = start + chunk_size
                _store(buffers, jax.device_get(draw(key, start)), start, stop)
                num_failed += int(np.sum(buffers.weight[num_done:stop] == 0.0))
                bar.set_postfix(failed=num_failed, refresh=False)
                bar.update(stop - num_done)
                num_done = stop
        except KeyboardInterrupt:
            if num_done == 0:
                raise
    return num_done


def _store(buffers: Simulations, chunk: Simulations, start: int, stop: int) -> None:
    for buffer, rows in zip(
        jax.tree.leaves(buffers), jax.tree.leaves(chunk), strict=True
    ):
        buffer[start:stop] = rows


def _report_failures(sims: Simulations) -> str | None:
    """One line about the failed draws, None if there are none."""
    failed = sims.weight == 0.0
    count, size = int(np.sum(failed)), failed.size
    if count == 0:
        return None
    if count == size:
        raise ValueError(
            f"all {size} simulations failed: each has a non-finite entry in theta or "
            "x. Call simulator(key, prior.sample(key)) once and look at what it "
            "returns."
        )
    return (
        f"{count} of {size} simulations ({100 * count / size:.2g} %) failed: theta or "
        "x is not finite. They have weight 0 and are left out. If that is more than "
        "you expect, look at theta where weight is 0."
    )


def _check_arguments(key: Array, prior: Prior, simulator: Simulator) -> None:
    check_key(key)
    check_record(
        prior,
        Prior,
        "prior",
        "Make one with sbijax.make_prior from a numpyro distribution, a dict of them "
        "or a model.",
    )
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


def _automatic_chunk_size(row: Simulations) -> int:
    row_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(row))
    return max(1, min(_MAX_CHUNK_SIZE, _CHUNK_BYTES // row_bytes))
