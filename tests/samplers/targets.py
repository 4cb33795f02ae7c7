"""Targets that are known in closed form, and how far draws may be from them.

All have three dimensions and one prior, so that one compiled program serves all of
them, see `pick`.  Where a likelihood depends on fewer dimensions, the others keep
their prior.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from numpyro.diagnostics import effective_sample_size
from scipy import stats

from sbijax.base import Target

NUM_DIMS = 3
SCALE = 2.0  # of the prior N(0, SCALE^2 I)
NOISE = np.array([[0.5, 0.3, 0.0], [0.3, 0.3, 0.1], [0.0, 0.1, 0.4]])
X = np.array([1.0, -2.0, 0.5])
BEND, NARROW = 0.5, 0.5
MODES, SHARES, WIDTHS = (-3.0, 3.0), (0.4, 0.6), (0.2, 0.2)
OTHER_WIDTHS = (0.5, 0.05)


class Known(NamedTuple):
    """A log-likelihood, and what follows from it and the prior."""

    log_likelihood: object
    mean: np.ndarray
    covariance: np.ndarray
    log_evidence: float


def with_prior(log_likelihood):
    return Target(
        sample_prior=lambda key: SCALE * jax.random.normal(key, (NUM_DIMS,)),
        log_prior=lambda z: jnp.sum(norm.logpdf(z, 0.0, SCALE)),
        log_likelihood=log_likelihood,
    )


def gaussian_likelihood(x):
    """N(x; z, NOISE) as a function of z."""
    precision = jnp.asarray(np.linalg.inv(NOISE))
    constant = np.linalg.slogdet(2 * np.pi * NOISE)[1]
    return lambda z: -0.5 * ((x - z) @ precision @ (x - z) + constant)


def gaussian():
    prior = SCALE**2 * np.eye(NUM_DIMS)
    gain = prior @ np.linalg.inv(prior + NOISE)
    evidence = stats.multivariate_normal.logpdf(X, np.zeros(NUM_DIMS), prior + NOISE)
    covariance = prior - gain @ prior
    return Known(gaussian_likelihood(jnp.asarray(X)), gain @ X, covariance, evidence)


def banana():
    """z_0 ~ N(0, 1), z_1 ~ N(BEND z_0^2, NARROW^2), whatever the prior."""

    def log_likelihood(z):
        log_target = norm.logpdf(z[0]) + norm.logpdf(z[1], BEND * z[0] ** 2, NARROW)
        return log_target - jnp.sum(norm.logpdf(z[:2], 0.0, SCALE))

    variances = [1.0, NARROW**2 + 2 * BEND**2, SCALE**2]
    return Known(log_likelihood, np.array([0.0, BEND, 0.0]), np.diag(variances), 0.0)


def _mixture_likelihood(widths):
    def log_likelihood(z):
        parts = [
            jnp.log(share) + norm.logpdf(z[0], mode, width)
            for share, mode, width in zip(SHARES, MODES, widths, strict=True)
        ]
        return jnp.logaddexp(*parts)

    return log_likelihood


def _mixture(widths):
    """The posterior is a mixture too, of one normal for each of the likelihood."""
    modes, noise = np.array(MODES), np.array(widths) ** 2
    gain = SCALE**2 / (SCALE**2 + noise)
    means, variances = gain * modes, gain * noise
    masses = SHARES * stats.norm.pdf(modes, 0.0, np.sqrt(SCALE**2 + noise))
    shares = masses / masses.sum()
    mean = shares @ means
    variance = shares @ (variances + (means - mean) ** 2)
    return Known(
        _mixture_likelihood(widths),
        np.array([mean, 0.0, 0.0]),
        np.diag([variance, SCALE**2, SCALE**2]),
        np.log(masses.sum()),
    )


def two_modes():
    return _mixture(WIDTHS)


def two_widths():
    return _mixture(OTHER_WIDTHS)


def half_normal():
    """v = exp(z_0) is half-normal, p(z_0) = 2 N(v; 0, 1) v, whatever the prior."""

    def log_likelihood(z):
        log_target = jnp.log(2.0) + norm.logpdf(jnp.exp(z[0])) + z[0]
        return log_target - norm.logpdf(z[0], 0.0, SCALE)

    mean = -0.5 * (np.euler_gamma + np.log(2.0))
    variances = [np.pi**2 / 8, SCALE**2, SCALE**2]
    return Known(log_likelihood, np.array([mean, 0.0, 0.0]), np.diag(variances), 0.0)


def half_nan():
    """N(1; z_0, 1), but NaN where z_0 <= 0: a truncated normal distribution."""

    def log_likelihood(z):
        return jnp.where(z[0] > 0.0, norm.logpdf(1.0, z[0], 1.0), jnp.nan)

    mean = SCALE**2 / (SCALE**2 + 1.0)
    sd = mean**0.5
    truncated = stats.truncnorm(-mean / sd, np.inf, mean, sd)
    evidence = stats.norm.logpdf(1.0, 0.0, (SCALE**2 + 1.0) ** 0.5)
    return Known(
        log_likelihood,
        np.array([truncated.mean(), 0.0, 0.0]),
        np.diag([truncated.var(), SCALE**2, SCALE**2]),
        evidence + stats.norm.logcdf(mean / sd),
    )


def nowhere():
    nan = np.full(NUM_DIMS, np.nan)
    return Known(lambda z: jnp.nan * z[0], nan, np.diag(nan), -np.inf)


def half_without_gradient():
    """exp(max(z_0, 0) / 4), whose gradient is NaN where z_0 < 0."""
    nan = np.full(NUM_DIMS, np.nan)
    return Known(
        lambda z: jnp.sqrt(jnp.maximum(z[0], 0.0) ** 2) / 4, nan, np.diag(nan), np.nan
    )


ALL = {
    "gaussian": gaussian(),
    "banana": banana(),
    "two_modes": two_modes(),
    "two_widths": two_widths(),
    "half_normal": half_normal(),
    "half_nan": half_nan(),
    "nowhere": nowhere(),
    "half_without_gradient": half_without_gradient(),
}


def pick(index):
    """The target of that number in `ALL`, which may be traced."""
    branches = [known.log_likelihood for known in ALL.values()]
    return with_prior(lambda z: jax.lax.switch(index, branches, z))


def index_of(name):
    return list(ALL).index(name)


def assert_mean(values, expected, *, num_sigma=5.0, min_ess=200.0):
    """The mean of chains `[C, n]` is as expected, within its Monte-Carlo error."""
    values = np.asarray(values, float)
    ess = float(effective_sample_size(values))
    assert ess > min_ess
    assert abs(values.mean() - expected) < num_sigma * values.std() / ess**0.5


def assert_moments(chains, known):
    """Mean and covariance of chains `[C, n, D]` are those of the target."""
    z = np.asarray(chains, float) - known.mean
    for i in range(NUM_DIMS):
        assert_mean(z[..., i], 0.0)
        for j in range(i, NUM_DIMS):
            assert_mean(z[..., i] * z[..., j], known.covariance[i, j])
