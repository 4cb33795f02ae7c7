"""Lotka-Volterra: the predator-prey task of the benchmark.

With u the prey and v the predators,

    du/dt = (alpha - beta v) u,    u(0) = 30
    dv/dt = (-gamma + delta u) v,  v(0) = 1
    x[i]      ~ LogNormal(log u(2.1 i), 0.1)
    x[10 + i] ~ LogNormal(log v(2.1 i), 0.1),  i = 0, ..., 9
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array
from sbijax.simulators._predator_prey import (
    log_likelihood_of_counts,
    make_log_populations,
)
from sbijax.simulators.task import Task, task_factory

__all__ = ["lotka_volterra"]

_START = (30.0, 1.0)
_SCALE = 0.1
_LOG_RANGE = (math.log(1e-10), math.log(1e4))  # where populations are cut off
_OBSERVED = (
    *(31.783262, 1.1971166, 0.29703617, 0.71145046, 2.9415865),
    *(11.482614, 36.09036, 0.46229604, 0.38081983, 0.9173736),
    *(0.8910395, 27.039942, 4.356176, 0.78444487, 0.17100818),
    *(0.1325878, 8.727008, 16.97251, 2.7902339, 0.47567415),
)

_log_populations = make_log_populations(2.1 * np.arange(10), max_num_steps=1024)


@task_factory
def lotka_volterra() -> Task:
    """Predators and prey at ten times, with theta `[4]` positive and x `[20]`.

    theta holds the rates alpha, beta, gamma and delta, log-normal with log-means
    -0.125, -3, -0.125 and -3 and log-scale 0.5.  x has ten counts of prey, then
    ten of predators.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import lotka_volterra
        >>> lotka_volterra().x_observed.shape
        (20,)

    Reference:
        Lueckmann, Boelts, Greenberg, Goncalves, Macke. Benchmarking
        simulation-based inference, 2021.
    """
    # The simulator loads diffrax; loaded here, it is never loaded in a trace.
    import diffrax  # noqa: F401
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    loc = jnp.array([-0.125, -3.0, -0.125, -3.0])
    return Task(
        name="lotka_volterra",
        prior=make_prior(dist.LogNormal(loc, 0.5).to_event(1)),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.array(_OBSERVED),
    )


def _log_mean(theta: Array) -> Array:
    """Means `[20]` of the log counts."""
    dynamic = jnp.concatenate([jnp.asarray(theta, float), jnp.array(_START)])
    return jnp.clip(_log_populations(dynamic).T.ravel(), *_LOG_RANGE)


def _simulator(key: Array, theta: Array) -> Array:
    mean = _log_mean(theta)
    return jnp.exp(mean + _SCALE * jax.random.normal(key, mean.shape))


def _log_likelihood(theta: Array, x: Array) -> Array:
    return log_likelihood_of_counts(_log_mean(theta), jnp.array(_SCALE), x)
