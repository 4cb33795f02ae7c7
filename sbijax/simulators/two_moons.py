"""Two moons: a crescent-shaped posterior with two modes.

    a ~ U(-pi / 2, pi / 2),  r ~ N(0.1, 0.01^2)
    p = (r cos a + 0.25, r sin a)
    x = p + (-|theta_1 + theta_2|, -theta_1 + theta_2) / sqrt(2)

Given x, theta lies on a crescent or on its mirror image in theta_1 = -theta_2.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sbijax.base import Array
from sbijax.simulators.task import Task, task_factory

__all__ = ["two_moons"]

_CENTRE = 0.25
_RADIUS_MEAN = 0.1
_RADIUS_SCALE = 0.01
_OBSERVED = (-0.6396706, 0.16234657)


@task_factory
def two_moons() -> Task:
    """Two moons, with theta `[2]` uniform on [-1, 1]^2 and x `[2]`.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import two_moons
        >>> two_moons().x_observed.shape
        (2,)

    Reference:
        Greenberg, Nonnenmacher and Macke, Automatic posterior transformation
        for likelihood-free inference, 2019; as in Lueckmann et al.,
        Benchmarking simulation-based inference, 2021.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    return Task(
        name="two_moons",
        prior=make_prior(dist.Uniform(-1.0, 1.0).expand([2]).to_event(1)),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.array(_OBSERVED),
    )


def _simulator(key: Array, theta: Array) -> Array:
    key_angle, key_radius = jax.random.split(key)
    bound = math.pi / 2.0
    angle = jax.random.uniform(key_angle, minval=-bound, maxval=bound)
    radius = _RADIUS_MEAN + _RADIUS_SCALE * jax.random.normal(key_radius)
    p = jnp.stack([radius * jnp.cos(angle) + _CENTRE, radius * jnp.sin(angle)])
    return p + _shift(theta)


def _log_likelihood(theta: Array, x: Array) -> Array:
    u, v = jnp.asarray(x) - _shift(theta) - jnp.array([_CENTRE, 0.0])
    tiny = jnp.finfo(jnp.result_type(u)).tiny
    radius = jnp.sqrt(jnp.maximum(u**2 + v**2, tiny))
    # A draw r < 0 lands in the half plane u < 0: the radius carries a sign.
    signed = jnp.where(u < 0.0, -radius, radius)
    log_polar = norm.logpdf(signed, _RADIUS_MEAN, _RADIUS_SCALE) - math.log(math.pi)
    return log_polar - jnp.log(radius)


def _shift(theta: Array) -> Array:
    """What theta adds to the crescent: `[2]`."""
    first, second = jnp.asarray(theta)
    along = jnp.stack([-jnp.abs(first + second), second - first])
    return along / math.sqrt(2.0)
