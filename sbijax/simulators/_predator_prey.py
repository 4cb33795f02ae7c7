"""The Lotka-Volterra equations, solved in log space.

With u the prey and v the predators,

    du/dt = (alpha - beta v) u,   dv/dt = (-gamma + delta u) v.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy.typing as npt

from sbijax.base import Array
from sbijax.simulators._log_ode import make_log_solution

__all__ = ["log_likelihood_of_counts", "make_log_populations"]

_MAX_STEP = 0.5
# Rates are computed as if no log population exceeded this, so that a trial step
# that overshoots is rejected for its error and does not overflow.
_MAX_LOG_RATE = 25.0


def make_log_populations(
    times: npt.ArrayLike, *, max_num_steps: int
) -> Callable[[Array], Array]:
    """Make a function from (alpha, beta, gamma, delta, u_0, v_0) to log populations.

    It returns `[T, 2]`, NaN where the solver failed, and can be differentiated in
    both modes.

    Args:
        times: `[T]`, rising from 0, when u and v are u_0 and v_0.
        max_num_steps: steps of the solver after which it has failed.
    """
    return make_log_solution(
        _rates,
        lambda dynamic: jnp.log(dynamic[4:]),
        times,
        max_step=_MAX_STEP,
        max_num_steps=max_num_steps,
    )


def _rates(dynamic: Array, log_z: Array) -> Array:
    alpha, beta, gamma, delta = dynamic[:4]
    prey, predators = jnp.exp(jnp.minimum(log_z, _MAX_LOG_RATE))
    return jnp.stack([alpha - beta * predators, delta * prey - gamma])


def log_likelihood_of_counts(mean: Array, scale: Array, x: Array) -> Array:
    """log p(x) of log-normal counts, -inf where they or the mean are impossible.

    Args:
        mean: means of log x, in the shape of x, NaN where the solver failed.
        scale: standard deviations of log x, of a shape that broadcasts to it.
        x: counts.
    """
    x = jnp.asarray(x, mean.dtype)
    possible = jnp.all(jnp.isfinite(mean)) & jnp.all((x > 0.0) & jnp.isfinite(x))
    log_x = jnp.log(jnp.where(possible, x, 1.0))
    error = (log_x - jnp.where(possible, mean, 0.0)) / scale
    log_norm = jnp.log(scale) + 0.5 * math.log(2.0 * math.pi)
    total = -jnp.sum(0.5 * error**2 + log_norm + log_x)
    return jnp.where(possible & ~jnp.isnan(total), total, -jnp.inf)
