"""Ordinary differential equations of positive quantities, solved for their logs.

With z > 0 and theta what the equation depends on,

    d log z / dt = f(theta, log z),  log z(0) = g(theta).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sbijax.base import Array

__all__ = ["make_log_solution"]

_TOLERANCE = 1e-5  # relative and absolute, of log z in one step


def make_log_solution(
    rates: Callable[[Array, Array], Array],
    log_start: Callable[[Array], Array],
    times: npt.ArrayLike,
    *,
    max_step: float,
    max_num_steps: int,
) -> Callable[[Array], Array]:
    """Make a function from theta `[P]` to log z `[T, K]`.

    It returns NaN where the solver failed.  Its derivative solves the ODE once
    with all P tangents; being linear in the tangent it also serves reverse mode,
    which diffrax's forward mode does not offer.

    Args:
        rates: f, of theta `[P]` and log z `[K]`.
        log_start: g, of theta `[P]`.
        times: `[T]`, rising from 0.
        max_step: longest step, and the first one tried; longer steps read the
            values in between off less exactly.
        max_num_steps: steps of the solver after which it has failed.
    """
    when = np.asarray(times, float)

    def solve(theta: Array) -> Array:
        import diffrax

        def field(t: Any, log_z: Array, args: Any) -> Array:
            return rates(theta, log_z)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=when[-1],
            dt0=max_step,
            y0=log_start(theta),
            saveat=diffrax.SaveAt(ts=jnp.asarray(when, theta.dtype)),
            stepsize_controller=diffrax.PIDController(
                rtol=_TOLERANCE, atol=_TOLERANCE, dtmax=max_step
            ),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_num_steps,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys, jnp.nan)

    @jax.custom_jvp
    def log_solution(theta: Array) -> Array:
        return solve(theta)

    @log_solution.defjvp
    def log_solution_jvp(
        primals: tuple[Array], tangents: tuple[Array]
    ) -> tuple[Array, Array]:
        (theta,), (tangent,) = primals, tangents
        log_z, jacobian = jax.vmap(
            lambda direction: jax.jvp(solve, (theta,), (direction,)),
            out_axes=(None, -1),
        )(jnp.eye(theta.size, dtype=theta.dtype))
        return log_z, jacobian @ tangent

    return log_solution
