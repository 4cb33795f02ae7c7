"""A built-in task: a prior, a simulator and what is known about them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, Prior, PyTree

__all__ = ["Task", "task_factory"]


class Task(NamedTuple):
    """A simulation-based inference problem with a name.

    `prior` is the distribution of theta.  `simulator(key, theta) -> x` is a
    pure JAX function of one draw.  `log_likelihood(theta, x) -> scalar` is
    log p(x | theta) of one theta and one x, normalised over x, -inf and never
    NaN where the model cannot give x; None where it is not known.
    `x_observed` is the data to infer theta from, in the form of one x; None
    where the task has none.  `num_categories` tells which leaves of x are discrete,
    in the form that `make_nle` takes; None where none is.

    Example:
        >>> import jax
        >>> from sbijax.simulators import two_moons
        >>> task = two_moons()
        >>> key_theta, key_x = jax.random.split(jax.random.key(0))
        >>> theta = task.prior.sample(key_theta)
        >>> x = task.simulator(key_x, theta)
        >>> task.log_likelihood(theta, x).shape
        ()
    """

    name: str
    prior: Prior
    simulator: Callable[[Array, PyTree], PyTree]
    log_likelihood: Callable[[PyTree, PyTree], Array] | None
    x_observed: PyTree | None
    num_categories: PyTree | None = None


def task_factory(build: Callable[[], Task]) -> Callable[[], Task]:
    """Make `build` return the same record each time, so that programs are shared.

    Compiled programs are found again by the identity of the prior and the
    simulator.  The record is built eagerly, so a first call inside `jit`
    leaks no tracer, and once for each default precision, which its arrays have.

    Args:
        build: function without arguments that makes a `Task`.

    Returns:
        A function that calls `build` once and keeps its record.

    Example:
        >>> from sbijax.simulators import two_moons
        >>> two_moons() is two_moons()
        True
    """

    @functools.cache
    def build_eagerly(dtype: jnp.dtype) -> Task:
        with jax.ensure_compile_time_eval():
            return build()

    @functools.wraps(build)
    def factory() -> Task:
        return build_eagerly(jnp.result_type(float))

    return factory
