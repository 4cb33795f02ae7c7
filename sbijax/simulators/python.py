"""Simulators that are not JAX: numpy, a compiled library, another program."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sbijax.base import PyTree
from sbijax.checks import check_count, check_positive

__all__ = ["PythonSimulator", "python_simulator"]

_EXPECTED = "expected function(rng, theta) -> x with rng a numpy.random.Generator"


class PythonSimulator(NamedTuple):
    """A simulator for worker processes; make one with `python_simulator`.

    `function(rng, theta) -> x` takes one draw, or batches of `batch_size`.
    `timeout` is in seconds for one call, None for no limit.
    """

    function: Callable[[np.random.Generator, PyTree], PyTree]
    batch_size: int | None
    timeout: float | None


def python_simulator(
    function: Callable[[np.random.Generator, PyTree], PyTree],
    *,
    batch_size: int | None = None,
    timeout: float | None = None,
) -> PythonSimulator:
    """Take any Python function as a simulator: `simulate` runs it in workers.

    Each draw, or batch of draws, has its own generator that depends on the key of
    `simulate` and the number of the draw alone: neither workers nor their order
    change a result.  A draw that raises, takes too long, kills its worker or
    returns NaN has weight 0, and the run goes on.

    Args:
        function: `function(rng, theta) -> x`.  theta is in the prior's structure,
            of numpy arrays and numbers; x is an array, a number or a pytree of
            them, of the same shapes in every draw.  All its random numbers must
            come from `rng`, a `numpy.random.Generator`.
        batch_size: `B`; the function then gets theta with leaves `[B, ...]` and
            returns x with leaves `[B, ...]`, and what fails fails `B` draws.
        timeout: seconds after which a call is given up.  It is interrupted by an
            exception; where that cannot be, in compiled code, a worker of the
            default executor is replaced, and threads and workers of dask leave
            the call behind.

    Returns:
        A record to give to `simulate` in place of a JAX function.

    Raises:
        TypeError: `function` cannot be called as `function(rng, theta)`.
        ValueError: `batch_size` is below 1, or `timeout` is not positive.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def function(rng, theta):
        ...     return theta + rng.normal(size=3)
        >>> simulator = sj.python_simulator(function, timeout=10.0)
        >>> sj.simulate(jax.random.key(0), prior, simulator, 100).x.shape
        (100, 3)
    """
    if not callable(function):
        raise TypeError(
            f"function must be a function, got {type(function).__name__}; {_EXPECTED}."
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled functions may have none to look at
        pass
    else:
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise TypeError(
                f"function has the signature {signature}, {_EXPECTED}."
            ) from error
    if batch_size is not None:
        batch_size = check_count(batch_size, "batch_size")
    if timeout is not None:
        timeout = check_positive(timeout, "timeout")
    return PythonSimulator(function, batch_size, timeout)
