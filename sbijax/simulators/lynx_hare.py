"""Lotka-Volterra model of the pelts of hares and lynxes, 1900 to 1920.

With u the hares and v the lynxes, in thousands of pelts a year,

    du/dt = (alpha - beta v) u,    u(1900) = hare_0
    dv/dt = (-gamma + delta u) v,  v(1900) = lynx_0
    x[n, 0] ~ LogNormal(log u(1900 + n), sigma_hare)
    x[n, 1] ~ LogNormal(log v(1900 + n), sigma_lynx),  n = 0, ..., 20
"""

import math

import jax
import jax.numpy as jnp

from sbijax.base import Array
from sbijax.simulators._predator_prey import (
    log_likelihood_of_counts,
    make_log_populations,
)
from sbijax.simulators.task import Task, task_factory

__all__ = ["lynx_hare"]

# Pelts collected by the Hudson's Bay Company, 1900 to 1920, in thousands.
_HARE = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1),
    *(40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
_LYNX = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4),
    *(8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)
_NUM_YEARS = len(_HARE)
_DYNAMIC = ("alpha", "beta", "gamma", "delta", "hare_0", "lynx_0")

# The slowest of 16,000 prior draws needs 140 steps.
_log_populations = make_log_populations(range(_NUM_YEARS), max_num_steps=256)


@task_factory
def lynx_hare() -> Task:
    """Lotka-Volterra model of the Hudson's Bay Company's pelt counts.

    theta is a dict of eight positive scalars: the rates `alpha`, `beta`,
    `gamma` and `delta` (per year; `beta` and `delta` per thousand animals
    too), the populations `hare_0` and `lynx_0` of 1900 (thousands), and the
    error scales `sigma_hare` and `sigma_lynx` (of the log counts).  x is
    `[21, 2]`: hares and lynxes in thousands, one row a year.

    The likelihood is exact up to the tolerance of the ODE solver.  It can be
    differentiated in forward and in reverse mode; both cost one solve with
    six tangents.

    Returns:
        The task; `x_observed` is the record of 1900 to 1920.

    Example:
        >>> import jax
        >>> from sbijax.simulators import lynx_hare
        >>> task = lynx_hare()
        >>> key_theta, key_x = jax.random.split(jax.random.key(0))
        >>> theta = task.prior.sample(key_theta)
        >>> task.simulator(key_x, theta).shape
        (21, 2)

    Reference:
        Carpenter, Predator-prey population dynamics: the Lotka-Volterra model
        in Stan, 2018.
    """
    # The simulator loads diffrax; loaded here, it is never loaded in a trace.
    import diffrax  # noqa: F401
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    fast = dist.TruncatedNormal(1.0, 0.5, low=0.0)
    slow = dist.TruncatedNormal(0.05, 0.05, low=0.0)
    population = dist.LogNormal(math.log(10.0), 1.0)
    scale = dist.LogNormal(-1.0, 1.0)
    prior = {
        "alpha": fast,
        "beta": slow,
        "gamma": fast,
        "delta": slow,
        "hare_0": population,
        "lynx_0": population,
        "sigma_hare": scale,
        "sigma_lynx": scale,
    }
    return Task(
        name="lynx_hare",
        prior=make_prior(prior),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.stack([jnp.array(_HARE), jnp.array(_LYNX)], axis=1),
    )


def _simulator(key: Array, theta: dict[str, Array]) -> Array:
    mean, scale = _log_mean_and_scale(theta)
    log_x = mean + scale * jax.random.normal(key, mean.shape)
    # Populations that die out keep a finite logarithm.
    return jnp.exp(jnp.maximum(log_x, math.log(jnp.finfo(log_x.dtype).tiny) + 1.0))


def _log_likelihood(theta: dict[str, Array], x: Array) -> Array:
    return log_likelihood_of_counts(*_log_mean_and_scale(theta), x)


def _log_mean_and_scale(theta: dict[str, Array]) -> tuple[Array, Array]:
    """Means `[21, 2]` and standard deviations `[2]` of the log counts."""
    dynamic = jnp.stack([jnp.asarray(theta[name], float) for name in _DYNAMIC])
    scale = jnp.stack([jnp.asarray(theta[f"sigma_{who}"]) for who in ("hare", "lynx")])
    return _log_populations(dynamic), scale
