"""Gaussian mixture: two components with one mean and unlike scales.

    x ~ 0.5 N(theta, I) + 0.5 N(theta, 0.1^2 I)

One component is picked for the whole of x, not for each of its entries.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sbijax.base import Array
from sbijax.simulators.task import Task, task_factory

__all__ = ["gaussian_mixture"]

_NUM_DIMS = 2
_SCALES = (1.0, 0.1)
_OBSERVED = (-9.472713, -1.4950509)


@task_factory
def gaussian_mixture() -> Task:
    """Gaussian mixture, with theta `[2]` uniform on [-10, 10]^2 and x `[2]`.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import gaussian_mixture
        >>> gaussian_mixture().x_observed.shape
        (2,)

    Reference:
        Sisson, Fan and Tanaka, Sequential Monte Carlo without likelihoods,
        2007; as in Lueckmann et al., Benchmarking simulation-based inference,
        2021.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    prior = dist.Uniform(-10.0, 10.0).expand([_NUM_DIMS]).to_event(1)
    return Task(
        name="gaussian_mixture",
        prior=make_prior(prior),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.array(_OBSERVED),
    )


def _simulator(key: Array, theta: Array) -> Array:
    key_component, key_noise = jax.random.split(key)
    scale = jax.random.choice(key_component, jnp.array(_SCALES))
    return theta + scale * jax.random.normal(key_noise, (_NUM_DIMS,))


def _log_likelihood(theta: Array, x: Array) -> Array:
    difference = (jnp.asarray(x) - jnp.asarray(theta))[:, None]
    log_probs = jnp.sum(norm.logpdf(difference, 0.0, jnp.array(_SCALES)), axis=0)
    return jax.nn.logsumexp(log_probs) - math.log(len(_SCALES))
