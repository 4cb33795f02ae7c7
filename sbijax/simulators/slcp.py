"""SLCP: a simple likelihood with a complex posterior.

    m = (theta_1, theta_2),  s_1 = theta_3^2,  s_2 = theta_4^2,
    rho = tanh(theta_5)
    S = [[s_1^2, rho s_1 s_2], [rho s_1 s_2, s_2^2]] + 1e-6 I
    x = (y_1, ..., y_4),  y_i ~ N(m, S)

1e-6 I keeps S invertible where theta_3 or theta_4 is 0.
"""

import math

import jax
import jax.numpy as jnp

from sbijax.base import Array
from sbijax.simulators.task import Task, task_factory

__all__ = ["draw_points", "log_likelihood_of_points", "slcp"]

_NUM_POINTS = 4
_JITTER = 1e-6
_OBSERVED = (
    2.3718784,
    0.49947417,
    9.931435,
    1.7136912,
    -10.436423,
    -1.9067793,
    -1.2343777,
    -0.09735,
)


@task_factory
def slcp() -> Task:
    """SLCP, with theta `[5]` uniform on [-3, 3]^5 and x `[8]`.

    x holds four points of the plane one after the other.  The posterior has
    four modes, since the signs of `theta[2]` and `theta[3]` do not matter.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import slcp
        >>> slcp().x_observed.shape
        (8,)

    Reference:
        Papamakarios, Sterratt and Murray, Sequential neural likelihood, 2019;
        as in Lueckmann et al., Benchmarking simulation-based inference, 2021.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    return Task(
        name="slcp",
        prior=make_prior(dist.Uniform(-3.0, 3.0).expand([5]).to_event(1)),
        simulator=draw_points,
        log_likelihood=log_likelihood_of_points,
        x_observed=jnp.array(_OBSERVED),
    )


def draw_points(key: Array, theta: Array) -> Array:
    """One x `[8]`."""
    mean, (l11, l21, l22) = _mean_and_cholesky(theta)
    e1, e2 = jax.random.normal(key, (2, _NUM_POINTS))
    points = mean + jnp.stack([l11 * e1, l21 * e1 + l22 * e2], axis=1)
    return points.reshape(-1)


def log_likelihood_of_points(theta: Array, x: Array) -> Array:
    """log p(x | theta) of one x `[8]`."""
    mean, (l11, l21, l22) = _mean_and_cholesky(theta)
    first, second = (jnp.asarray(x).reshape(_NUM_POINTS, 2) - mean).T
    e1 = first / l11
    e2 = (second - l21 * e1) / l22
    log_scale = jnp.log(l11) + jnp.log(l22) + math.log(2.0 * math.pi)
    return -0.5 * jnp.sum(e1**2 + e2**2) - _NUM_POINTS * log_scale


def _mean_and_cholesky(theta: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    """m `[2]` and the lower triangle of the Cholesky factor of S.

    The last entry is written without the difference of nearly equal numbers
    that s_2^2 - l21^2 would be.
    """
    theta = jnp.asarray(theta)
    var1, var2 = theta[2] ** 4, theta[3] ** 4
    covariance = jnp.tanh(theta[4]) * theta[2] ** 2 * theta[3] ** 2
    total1 = var1 + _JITTER
    l11 = jnp.sqrt(total1)
    unexplained = (var1 / jnp.cosh(theta[4]) ** 2 + _JITTER) / total1
    l22 = jnp.sqrt(var2 * unexplained + _JITTER)
    return theta[:2], (l11, covariance / l11, l22)
