"""SIR: an epidemic of which ten samples of the population are tested.

With s and i the shares of a million people that can catch the disease and that
have it, one of them on day 0,

    ds/dt = -beta s i,  di/dt = beta s i - gamma i
    x[k] ~ Binomial(1000, i(17 k)),  k = 0, ..., 9
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from sbijax.base import Array
from sbijax.simulators._log_ode import make_log_solution
from sbijax.simulators.task import Task, task_factory

__all__ = ["sir"]

_POPULATION = 1e6
_NUM_TESTED = 1_000
_DAYS = 17.0 * np.arange(10)
_LOG_START = (math.log1p(-1.0 / _POPULATION), -math.log(_POPULATION))
_OBSERVED = (0.0, 1.0, 352.0, 40.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@task_factory
def sir() -> Task:
    """Counts of the infected on ten days, with theta `[2]` positive and x `[10]`.

    theta holds the rates of contact and of recovery, beta and gamma (per day),
    log-normal with medians 0.4 and 0.125 and log-scales 0.5 and 0.2.  x holds how
    many of 1,000 people are infected on days 0, 17, ..., 153: whole numbers, as
    floats.

    The likelihood is exact up to the tolerance of the ODE solver.  It can be
    differentiated in forward and in reverse mode; both cost one solve with
    two tangents.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import sir
        >>> sir().x_observed.shape
        (10,)

    Reference:
        Kermack and McKendrick, A contribution to the mathematical theory of
        epidemics, 1927; as in Lueckmann et al., Benchmarking simulation-based
        inference, 2021.
    """
    # The simulator loads diffrax; loaded here, it is never loaded in a trace.
    import diffrax  # noqa: F401
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    prior = dist.LogNormal(jnp.log(jnp.array([0.4, 0.125])), jnp.array([0.5, 0.2]))
    return Task(
        name="sir",
        prior=make_prior(prior.to_event(1)),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.array(_OBSERVED),
    )


def _simulator(key: Array, theta: Array) -> Array:
    return jax.random.binomial(key, _NUM_TESTED, jnp.exp(_log_infected(theta)))


def _log_likelihood(theta: Array, x: Array) -> Array:
    log_i = _log_infected(theta)
    x = jnp.asarray(x, log_i.dtype)
    counts = (x >= 0.0) & (x <= _NUM_TESTED) & (x == jnp.floor(x))
    possible = jnp.all(counts) & jnp.all(jnp.isfinite(log_i))
    x = jnp.where(possible, x, 0.0)
    log_i = jnp.where(possible, log_i, -1.0)
    rest = _NUM_TESTED - x
    log_ways = gammaln(_NUM_TESTED + 1.0) - gammaln(x + 1.0) - gammaln(rest + 1.0)
    # In logs: where i underflows, the likelihood of a case does not.
    total = jnp.sum(log_ways + x * log_i + rest * jnp.log1p(-jnp.exp(log_i)))
    return jnp.where(possible, total, -jnp.inf)


def _log_infected(theta: Array) -> Array:
    """log i on the days of the tests, `[10]`, NaN where the solver failed."""
    log_i = _log_shares(jnp.asarray(theta, float))[:, 1]
    # The solver's error must not push a share past 1.
    return jnp.minimum(log_i, -jnp.finfo(log_i.dtype).eps)


def _rates(theta: Array, log_z: Array) -> Array:
    beta, gamma = theta
    # No share exceeds 1; a trial step that overshoots is rejected for its error.
    susceptible, infected = jnp.exp(jnp.minimum(log_z, 0.0))
    return jnp.stack([-beta * infected, beta * susceptible - gamma])


_log_shares = make_log_solution(
    _rates,
    lambda theta: jnp.array(_LOG_START, theta.dtype),
    _DAYS,
    max_step=2.0,
    max_num_steps=1024,
)
