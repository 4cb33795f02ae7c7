"""The Lotka-Volterra equations, solved in log space.

With u the prey and v the predators,

    du/dt = (alpha - beta v) u,   dv/dt = (-gamma + delta u) v.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sbijax.base import Array

__all__ = ["log_likelihood_of_counts", "make_log_populations"]

_TOLERANCE = 1e-5  # relative and absolute, of the log populations in one step
_MAX_STEP = 0.5  # longer steps read the values in between off less exactly
# Rates are computed as if no log population exceeded this, so that a trial step
# that overshoots is rejected for its error and does not overflow.
_MAX_LOG_RATE = 25.0


def make_log_populations(
    times: npt.ArrayLike, *, max_num_steps: int
) -> Callable[[Array], Array]:
    """Make a function from (alpha, beta, gamma, delta, u_0, v_0) to log populations.

    It returns `[T, 2]`, NaN where the solver failed.  Its derivative solves the
    ODE once with all six tangents; being linear in the tangent it also serves
    reverse mode, which diffrax's forward mode does not offer.

    Args:
        times: `[T]`, rising from 0, when u and v are u_0 and v_0.
        max_num_steps: steps of the solver after which it has failed.
    """
    when = np.asarray(times, float)

    def solve(dynamic: Array) -> Array:
        import diffrax

        alpha, beta, gamma, delta = dynamic[:4]

        def rates(t: Any, log_z: Array, args: Any) -> Array:
            prey, predators = jnp.exp(jnp.minimum(log_z, _MAX_LOG_RATE))
            return jnp.stack([alpha - beta * predators, delta * prey - gamma])

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(rates),
            diffrax.Tsit5(),
            t0=0.0,
            t1=when[-1],
            dt0=_MAX_STEP,
            y0=jnp.log(dynamic[4:]),
            saveat=diffrax.SaveAt(ts=jnp.asarray(when, dynamic.dtype)),
            stepsize_controller=diffrax.PIDController(
                rtol=_TOLERANCE, atol=_TOLERANCE, dtmax=_MAX_STEP
            ),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_num_steps,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys, jnp.nan)

    @jax.custom_jvp
    def log_populations(dynamic: Array) -> Array:
        return solve(dynamic)

    @log_populations.defjvp
    def log_populations_jvp(
        primals: tuple[Array], tangents: tuple[Array]
    ) -> tuple[Array, Array]:
        (dynamic,), (tangent,) = primals, tangents
        log_z, jacobian = jax.vmap(
            lambda direction: jax.jvp(solve, (dynamic,), (direction,)),
            out_axes=(None, -1),
        )(jnp.eye(dynamic.size, dtype=dynamic.dtype))
        return log_z, jacobian @ tangent

    return log_populations


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
