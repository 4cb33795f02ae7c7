"""Draws along the probability flow of a diffusion, and their density.

Noise e at phi = pi / 2 flows to data y at phi = 0 along

    du / dphi = -F(u, phi),   d log p(u) / dphi = div F(u, phi),

so log p(y) = log N(u(pi / 2); 0, I) - int_0^{pi/2} div F(u(phi), phi) dphi.  Time is
tau = (2 phi / pi)^(1/2): where the posterior is narrow the field changes fastest
near the data.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree, SolverInfo, count_invalid
from sbijax.checks import check_count, check_positive

__all__ = ["FieldAt", "FlowSampler", "angle_at", "log_density_of_flow", "ode"]

FieldAt = Callable[[Array, Array], Array]

_TOLERANCE = 1e-5
_TOLERANCE_OF_DENSITY = 1e-4
_MAX_STEPS = 100
_MAX_STEPS_OF_DENSITY = 1_000
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
        def slope(angle: Array, u: Array) -> Array:
            return -jax.vmap(field, (0, None))(u, angle)

        start = jax.random.normal(key, shape)
        y, num_steps, arrived = _solve(
            slope, start, (1.0, 0.0), tolerance, max_num_steps, _bounded_error
        )
        failed = jnp.where(arrived, 0, shape[0])
        return y, SolverInfo(count_invalid(y), num_steps=num_steps, num_failed=failed)

    return draw


def angle_at(time: float | Array) -> Array:
    """The angle at tau from 0 (data) to 1 (noise)."""
    return jnp.asarray(0.5 * math.pi * time**_POWER)


def log_density_of_flow(
    field: FieldAt,
    y: Array,
    probes: Array | None = None,
    *,
    tolerance: float = _TOLERANCE_OF_DENSITY,
    max_num_steps: int = _MAX_STEPS_OF_DENSITY,
) -> Array:
    """log p(y) of one y `[D]`, NaN where the solver does not arrive.

    Args:
        field: `(u [D], angle) -> [D]`.
        y: where.
        probes: vectors v `[K, D]` with independent entries of mean 0 and variance
            1; each gives an unbiased estimate that replaces the divergence by
            v^T (dF / du) v.  None for the exact divergence.
        tolerance: error allowed in a step.
        max_num_steps: steps after which it has not arrived.

    Returns:
        A scalar, or one estimate per probe `[K]`.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud. FFJORD: free-form
        continuous dynamics for scalable reversible generative models, 2019.
    """
    directions = jnp.eye(y.size, dtype=y.dtype) if probes is None else probes

    def slope(angle: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        value, push = jax.linearize(lambda u: field(u, angle), state[0])
        each = jnp.sum(directions * jax.vmap(push)(directions), axis=1)
        return -value, jnp.sum(each) if probes is None else each

    total = jnp.zeros(() if probes is None else len(probes), y.dtype)
    (u, total), _, arrived = _solve(
        slope, (y, total), (0.0, 1.0), tolerance, max_num_steps, _largest_error
    )
    log_normal = -0.5 * jnp.sum(u**2) - 0.5 * y.size * math.log(2.0 * math.pi)
    return jnp.where(arrived, log_normal - total, jnp.nan)


def _solve(
    slope: Callable[[Array, PyTree], PyTree],
    start: PyTree,
    times: tuple[float, float],
    tolerance: float,
    max_num_steps: int,
    norm: Callable[[PyTree], Array],
) -> tuple[PyTree, Array, Array]:
    """The state at the end, the number of steps, and whether it arrived there."""
    import diffrax

    dtype = jax.tree.leaves(start)[0].dtype

    def velocity(time: Any, state: PyTree, args: Any) -> PyTree:
        time = jnp.asarray(time, dtype)
        speed = 0.5 * math.pi * _POWER * time ** (_POWER - 1.0)
        return jax.tree.map(lambda leaf: speed * leaf, slope(angle_at(time), state))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[1],
        dt0=math.copysign(_FIRST_STEP, times[1] - times[0]),
        y0=start,
        stepsize_controller=diffrax.PIDController(
            rtol=tolerance, atol=tolerance, norm=norm
        ),
        max_steps=max_num_steps,
        throw=False,
    )
    arrived = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    return end, solution.stats["num_steps"], arrived


def _bounded_error(error: Array) -> Array:
    """Root mean square over draws `[S, D]`, to which none adds without bound.

    Of 400 draws or more, one adds half of what is allowed at most; one that is not
    finite any more adds nothing.
    """
    each = jnp.mean(error**2, axis=1)
    largest = max(10.0, _LARGEST_SHARE * len(each) ** 0.5)
    each = jnp.where(jnp.isfinite(each), jnp.minimum(each, largest**2), 0.0)
    return jnp.sqrt(jnp.mean(each))


def _largest_error(error: tuple[Array, Array]) -> Array:
    """The larger of the root mean squares of position and log-density."""
    sizes = [jnp.sqrt(jnp.mean(leaf**2)) for leaf in error]
    return jnp.maximum(*sizes)
