"""Draws along the probability flow of a diffusion.

Noise e at phi = pi / 2 flows to data y at phi = 0 along du / dphi = -F(u, phi).
Time is tau = (2 phi / pi)^(1/2): where the posterior is narrow the field changes
fastest near the data.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sbijax.base import Array, SolverInfo
from sbijax.checks import check_count, check_positive
from sbijax.data import count_invalid
from sbijax.noise import normal

__all__ = ["FieldAt", "FlowSampler", "angle_at", "angle_speed_at", "ode"]

FieldAt = Callable[[Array, Array], Array]

_TOLERANCE = 1e-5
_MAX_STEPS = 100
_FIRST_STEP = 0.05
_LARGEST_SHARE = 0.5
_POWER = 2.0


class FlowSampler(Protocol):
    """Draws from the distribution that a field carries noise to."""

    def __call__(
        self, key: Array, field: FieldAt, *, shape: tuple[int, int]
    ) -> tuple[Array, SolverInfo]:
        """Return y `[S, D]` of this shape, for `field(u [D], angle) -> [D]`."""
        ...


def ode(
    *, tolerance: float = _TOLERANCE, max_num_steps: int = _MAX_STEPS
) -> FlowSampler:
    """Solve the probability flow with steps that adapt to its error.

    All draws take the same steps, sized by the root mean square of their errors.
    What one draw adds to it is bounded, so that none slows hundreds of others.

    Args:
        tolerance: error allowed in a step, absolute and relative to y, which is of
            order one before x is known: a posterior narrower than two hundred
            tolerances needs a smaller one.
        max_num_steps: steps after which the draws stop where they are; `info`
            then says that they failed.

    Returns:
        A sampler by the Runge-Kutta method of Tsitouras, order 5, from diffrax.

    Raises:
        TypeError: a number of another kind.
        ValueError: a tolerance that is not positive, or fewer than one step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.samplers import ode
        >>> def field(u, angle):  # of y ~ N(0, I), which is where noise starts
        ...     return jnp.zeros_like(u)
        >>> y, info = ode()(jax.random.key(0), field, shape=(4, 2))
        >>> y.shape, int(info.num_failed)
        ((4, 2), 0)

    Reference:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. Score-based generative
        modeling through stochastic differential equations, 2021 (section 4.3).
        Tsitouras. Runge-Kutta pairs of order 5(4) satisfying only the first column
        simplifying assumption, 2011.
    """
    tolerance = check_positive(tolerance, "tolerance")
    max_num_steps = check_count(max_num_steps, "max_num_steps")

    def draw(
        key: Array, field: FieldAt, *, shape: tuple[int, int]
    ) -> tuple[Array, SolverInfo]:
        import diffrax

        start = normal(key, shape)

        def slope(time: Any, u: Array, args: Any) -> Array:
            time = jnp.asarray(time, start.dtype)
            found = jax.vmap(field, (0, None))(u, angle_at(time))
            return -angle_speed_at(time) * found

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Tsit5(),
            t0=1.0,
            t1=0.0,
            dt0=-_FIRST_STEP,
            y0=start,
            stepsize_controller=diffrax.PIDController(
                rtol=tolerance, atol=tolerance, norm=_bounded_error
            ),
            max_steps=max_num_steps,
            throw=False,
        )
        y = solution.ys[0]
        arrived = solution.result == diffrax.RESULTS.successful
        info = SolverInfo(
            num_invalid=count_invalid(y),
            num_steps=solution.stats["num_steps"],
            num_failed=jnp.where(arrived, 0, shape[0]),
        )
        return y, info

    return draw


def angle_at(time: float | Array) -> Array:
    """The angle at tau from 0 (data) to 1 (noise)."""
    return jnp.asarray(0.5 * math.pi * time**_POWER)


def angle_speed_at(time: float | Array) -> Array:
    """The derivative of `angle_at`."""
    return jnp.asarray(0.5 * math.pi * _POWER * time ** (_POWER - 1.0))


def _bounded_error(error: Array) -> Array:
    """Root mean square over draws `[S, D]`, to which none adds without bound.

    Of 400 draws or more, one adds half of what is allowed at most; one that is not
    finite any more adds nothing.
    """
    each = jnp.mean(error**2, axis=1)
    largest = max(10.0, _LARGEST_SHARE * len(each) ** 0.5)
    each = jnp.where(jnp.isfinite(each), jnp.minimum(each, largest**2), 0.0)
    return jnp.sqrt(jnp.mean(each))
