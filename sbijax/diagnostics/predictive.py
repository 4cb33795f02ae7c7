"""Posterior predictive draws: data that the fitted model would produce."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.checks import check_key, describe

__all__ = ["posterior_predictive"]


def posterior_predictive(
    key: Array, simulator: Callable[[Array, PyTree], PyTree], theta: PyTree
) -> PyTree:
    """Simulate one data set for each posterior draw, x_s ~ p(x | theta_s).

    Args:
        key: PRNG key.
        simulator: `(key, theta) -> x` for one theta, a JAX function.  It is
            vmapped and compiled; the same function is not traced again.
        theta: draws with leaves `[S, ...]`.

    Returns:
        x with leaves `[S, ...]`.  Simulations that fail stay as they are (NaN,
        say): how many do is part of the check.

    Raises:
        ValueError: leaves without a common axis of draws.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key, (3,))
        >>> draws = jnp.zeros(100)
        >>> posterior_predictive(jax.random.key(0), simulator, draws).shape
        (100, 3)

    Reference:
        Gelman, Meng and Stern, "Posterior predictive assessment of model
        fitness via realized discrepancies", 1996.
    """
    check_key(key)
    theta = jax.tree.map(jnp.asarray, theta)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(theta)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "theta must hold draws with leaves [S, ...] of one length S, got "
            f"{describe(theta)}."
        )
    return _simulate(key, simulator, theta, sizes.pop())


@partial(jax.jit, static_argnames=("simulator", "num_draws"))
def _simulate(
    key: Array,
    simulator: Callable[[Array, PyTree], PyTree],
    theta: PyTree,
    num_draws: int,
) -> PyTree:
    return jax.vmap(simulator)(jax.random.split(key, num_draws), theta)
