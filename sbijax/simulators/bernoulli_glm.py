"""Bernoulli GLM: a neuron that spikes, or does not, in each of 100 time bins.

A stimulus u_1, ..., u_100 of white noise passes through a filter f of nine taps:

    psi_t = b + sum_j f_j u_{t - j},  j = 0, ..., 8
    y_t ~ Bernoulli(1 / (1 + exp(-psi_t)))

or psi = X theta with theta = (b, f).  The prior of f makes it smooth,

    b ~ N(0, 2),  F f ~ N(0, I),  F = (I - L)^2 + diag(sqrt(j / 9)),

where L shifts by one tap, so that (I - L)^2 takes second differences.  The
likelihood depends on y through X^T y alone, which is the x of `bernoulli_glm`;
the x of `bernoulli_glm_raw` is y.

The benchmark keeps u in a file.  It is what numpy's `RandomState(42)` draws, whose
stream of numbers never changes; tests hold X against its observation.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sbijax.base import Array, Prior
from sbijax.simulators.task import Task, task_factory

__all__ = ["bernoulli_glm", "bernoulli_glm_raw"]

_NUM_BINS = 100
_NUM_TAPS = 9
_SEED = 42
_OBSERVED = (
    *(56.0, 3.32306, 14.356438, 11.104893, -4.167525, -18.507809, -21.917496),
    *(-9.553517, -0.357257, -5.497825),
)
_OBSERVED_SPIKES = (
    "11011111111000000111111100011101111000001111000011"
    "10001111001100011111001110000000111000111110000111"
)


@task_factory
def bernoulli_glm() -> Task:
    """Bernoulli GLM, with theta `[10]` and the sufficient statistics x `[10]`.

    theta is the offset and the nine taps of a filter, x the number of spikes and
    the sum of the stimulus at each of nine lags before a spike.

    No two of the 2^100 trains of spikes have the same statistics in exact
    arithmetic, so log p(x | theta) is the log-probability of the train, the same
    number as that of `bernoulli_glm_raw`.  That some train gives x is checked as
    far as the number of spikes tells.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import bernoulli_glm
        >>> bernoulli_glm().x_observed.shape
        (10,)

    Reference:
        Goncalves et al., Training deep neural density estimators to identify
        mechanistic models of neural dynamics, 2020; as in Lueckmann et al.,
        Benchmarking simulation-based inference, 2021.
    """
    return Task(
        name="bernoulli_glm",
        prior=_smooth_prior(),
        simulator=_simulate_statistics,
        log_likelihood=_log_likelihood_of_statistics,
        x_observed=jnp.array(_OBSERVED),
    )


@task_factory
def bernoulli_glm_raw() -> Task:
    """Bernoulli GLM, with theta `[10]` and the spikes themselves as x `[100]`.

    theta is the offset and the nine taps of a filter, x is 1 in time bins with a
    spike and 0 in the others.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import bernoulli_glm_raw
        >>> int(bernoulli_glm_raw().x_observed.sum())
        56

    Reference:
        Goncalves et al., Training deep neural density estimators to identify
        mechanistic models of neural dynamics, 2020; as in Lueckmann et al.,
        Benchmarking simulation-based inference, 2021.
    """
    return Task(
        name="bernoulli_glm_raw",
        prior=_smooth_prior(),
        simulator=_simulate_spikes,
        log_likelihood=_log_likelihood_of_spikes,
        x_observed=jnp.array([float(spike) for spike in _OBSERVED_SPIKES]),
        num_categories=2,
    )


def _smooth_prior() -> Prior:
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    difference = np.eye(_NUM_TAPS) - np.eye(_NUM_TAPS, k=-1)
    weights = np.sqrt(np.arange(_NUM_TAPS) / _NUM_TAPS)
    # F is lower triangular, and so is its inverse: a Cholesky factor.
    scale = np.zeros((_NUM_TAPS + 1, _NUM_TAPS + 1))
    scale[0, 0] = math.sqrt(2.0)
    inverse = np.linalg.inv(difference @ difference + np.diag(weights))
    scale[1:, 1:] = np.tril(inverse)  # exact zeros above
    loc = jnp.zeros(_NUM_TAPS + 1)
    return make_prior(dist.MultivariateNormal(loc, scale_tril=jnp.asarray(scale)))


def _simulate_spikes(key: Array, theta: Array) -> Array:
    psi = _dot(_design(), theta)
    return jax.random.bernoulli(key, jax.nn.sigmoid(psi)).astype(psi.dtype)


def _simulate_statistics(key: Array, theta: Array) -> Array:
    return _dot(_design().T, _simulate_spikes(key, theta))


def _log_likelihood_of_spikes(theta: Array, x: Array) -> Array:
    psi = _dot(_design(), theta)
    x = jnp.asarray(x, psi.dtype)
    possible = jnp.all((x == 0.0) | (x == 1.0))
    x = jnp.where(possible, x, 0.0)
    log_prob = jnp.sum(x * psi - jax.nn.softplus(psi))
    return jnp.where(possible, log_prob, -jnp.inf)


def _log_likelihood_of_statistics(theta: Array, x: Array) -> Array:
    psi = _dot(_design(), theta)
    x = jnp.asarray(x, psi.dtype)
    num_spikes = x[0]
    possible = (num_spikes >= 0.0) & (num_spikes <= _NUM_BINS)
    possible &= (num_spikes == jnp.floor(num_spikes)) & jnp.all(jnp.isfinite(x))
    x = jnp.where(possible, x, 0.0)
    log_prob = _dot(x, theta) - jnp.sum(jax.nn.softplus(psi))
    return jnp.where(possible, log_prob, -jnp.inf)


@functools.cache
def _design() -> npt.NDArray[np.float32]:
    """X `[100, 10]`: ones, then the stimulus at lags 0 to 8."""
    stimulus = np.random.RandomState(_SEED).randn(_NUM_BINS)
    design = np.zeros((_NUM_BINS, _NUM_TAPS + 1), np.float32)
    design[:, 0] = 1.0
    for lag in range(_NUM_TAPS):
        design[lag:, lag + 1] = stimulus[: _NUM_BINS - lag]
    return design


def _dot(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Their product, in full precision on every device."""
    return jnp.matmul(jnp.asarray(a), jnp.asarray(b, float), precision="highest")
