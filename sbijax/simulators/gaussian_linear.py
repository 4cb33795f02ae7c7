"""Linear Gaussian model: the mean of a Gaussian in ten dimensions.

    theta ~ N(0, 0.1 I),  x ~ N(theta, 0.1 I)

The posterior is N(x / 2, 0.05 I).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sbijax.base import Array
from sbijax.simulators.task import Task, task_factory

__all__ = ["gaussian_linear"]

_NUM_DIMS = 10
_SCALE = math.sqrt(0.1)
_OBSERVED = (
    1.0471346,
    0.5566712,
    -0.23618454,
    0.027879834,
    -1.0051446,
    -0.007930746,
    0.06117077,
    -0.29286885,
    -0.38539964,
    0.2449614,
)


@task_factory
def gaussian_linear() -> Task:
    """Linear Gaussian model, with theta `[10]` and x `[10]`.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import gaussian_linear
        >>> gaussian_linear().x_observed.shape
        (10,)

    Reference:
        Lueckmann et al., Benchmarking simulation-based inference, 2021.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    prior = dist.Normal(0.0, _SCALE).expand([_NUM_DIMS]).to_event(1)
    return Task(
        name="gaussian_linear",
        prior=make_prior(prior),
        simulator=add_noise,
        log_likelihood=log_likelihood_of_mean,
        x_observed=jnp.array(_OBSERVED),
    )


def add_noise(key: Array, theta: Array) -> Array:
    """Draw x `[10]` given theta `[10]`."""
    return theta + _SCALE * jax.random.normal(key, (_NUM_DIMS,))


def log_likelihood_of_mean(theta: Array, x: Array) -> Array:
    """Evaluate log p(x | theta)."""
    return jnp.sum(norm.logpdf(jnp.asarray(x), jnp.asarray(theta), _SCALE))
