"""Images, series, sets, several inputs and missing entries with exact posteriors.

One simulator for each kind of data that an embedding is made for.  The likelihoods
are known, so that the posterior of an observation can be sampled exactly: in closed
form where the prior is conjugate, otherwise by importance resampling from a
proposal that is adapted to it, whose effective sample size tells whether it worked.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import sbijax as sj
from sbijax import networks
from sbijax.base import Array, Prior, PyTree

__all__ = ["TASKS", "Task", "hide_entries", "importance_posterior"]

NUM_CANDIDATES = 100_000
NUM_ROUNDS = 5
DEGREES_OF_FREEDOM = 5.0

LogLikelihood = Callable[[PyTree, PyTree], Array]
SampleExact = Callable[..., tuple[PyTree, Array]]


class Task(NamedTuple):
    """A simulator, its exact posterior, and how to look at its data.

    Attributes:
        prior: the prior.
        simulator: `(key, theta) -> x`.
        log_likelihood: `(theta, x) -> scalar`.
        sample_exact: `(key, x, *, num_samples) -> (theta, ess)`: independent draws
            from the posterior, and the effective sample size of the candidates that
            they were taken from, infinite in closed form.
        embedding: network for one x, None for the default.
        standardizer: for x, None for the default.
        adapt: what is done to the estimator besides.
        observe: `(key, x) -> x`, from a simulation to what is seen of it.
    """

    prior: Prior
    simulator: Callable[[Array, PyTree], PyTree]
    log_likelihood: LogLikelihood
    sample_exact: SampleExact
    embedding: sj.Network | None
    standardizer: sj.Standardizer | None
    adapt: Callable[[Any], Any] = lambda estimator: estimator
    observe: Callable[[Array, PyTree], PyTree] = lambda key, x: x


def importance_posterior(prior: Prior, log_likelihood: LogLikelihood) -> SampleExact:
    """Exact draws by importance resampling in unconstrained space.

    The proposal is a Student t whose mean and covariance are those of the weighted
    candidates of the round before, at first those of the prior.

    Reference:
        Cappe, Guillin, Marin, Robert. Population Monte Carlo, 2004.
    """
    num_dims = prior.num_dims

    def log_posterior(z: Array, x: PyTree) -> Array:
        theta = prior.from_vector(z)
        return prior.log_prob(theta) + prior.log_det(z) + log_likelihood(theta, x)

    def propose(key: Array, loc: Array, factor: Array) -> tuple[Array, Array]:
        """Candidates `[S, D]` and their log-density."""
        t = dist.MultivariateStudentT(DEGREES_OF_FREEDOM, loc, factor)
        z = t.sample(key, (NUM_CANDIDATES,))
        return z, t.log_prob(z)

    @partial(jax.jit, static_argnames="num_samples")
    def sample(key: Array, x: PyTree, *, num_samples: int) -> tuple[PyTree, Array]:
        adapt_key, pick_key = jax.random.split(key)

        def adapt(
            state: tuple[Array, ...], key: Array
        ) -> tuple[tuple[Array, ...], None]:
            loc, factor, *_ = state
            z, log_q = propose(key, loc, factor)
            log_w = jax.lax.map(partial(log_posterior, x=x), z, batch_size=1_000)
            log_w = log_w - log_q
            log_w = jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)  # overflow, far out
            w = jax.nn.softmax(log_w)
            loc = w @ z
            covariance = (w[:, None] * (z - loc)).T @ (z - loc)
            factor = jnp.linalg.cholesky(covariance + 1e-8 * jnp.eye(num_dims))
            return (loc, factor, z, w), None

        start = (jnp.zeros(num_dims), jnp.eye(num_dims))
        nothing = (jnp.zeros((NUM_CANDIDATES, num_dims)), jnp.zeros(NUM_CANDIDATES))
        keys = jax.random.split(adapt_key, NUM_ROUNDS)
        (*_, z, w), _ = jax.lax.scan(adapt, start + nothing, keys)
        ess = 1.0 / jnp.sum(w**2)
        # Systematic resampling: a candidate is taken twice only if it has to be.
        places = (jnp.arange(num_samples) + jax.random.uniform(pick_key)) / num_samples
        rows = jnp.searchsorted(jnp.cumsum(w), places)
        z = z[jnp.minimum(rows, NUM_CANDIDATES - 1)]
        return jax.vmap(prior.from_vector)(z), ess

    return sample


def normal(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Sum of the log-densities of independent normals."""
    return jnp.sum(dist.Normal(loc, scale).log_prob(x))


def blob(theta: PyTree, size: int) -> Array:
    """Gaussian of height 1 on `[size, size]` pixels, lengths in pixels."""
    pixels = jnp.arange(size)
    profile = jnp.exp(
        -0.5 * ((pixels - theta["position"][:, None]) / theta["width"]) ** 2
    )
    return profile[0][:, None] * profile[1]


def image() -> Task:
    """Position and width of a blob on 32 x 32 pixels with noise of sd .75."""
    size, noise = 32, 0.75
    prior = sj.make_prior(
        {
            "position": dist.Uniform(7.0, 24.0).expand([2]).to_event(1),
            "width": dist.Uniform(2.0, 6.0),
        }
    )

    def simulator(key: Array, theta: PyTree) -> Array:
        return blob(theta, size) + noise * jax.random.normal(key, (size, size))

    def log_likelihood(theta: PyTree, x: Array) -> Array:
        return normal(x, blob(theta, size), noise)

    return Task(
        prior=prior,
        simulator=simulator,
        log_likelihood=log_likelihood,
        sample_exact=importance_posterior(prior, log_likelihood),
        embedding=networks.conv_2d(32),
        standardizer=networks.pooled(networks.robust(), num_axes=2),
    )


def series() -> Task:
    """Rate, mean level and volatility of an Ornstein-Uhlenbeck process.

    dX = rate (level - X) dt + volatility dW, stationary, seen 200 times .5 apart.
    """
    length, interval = 200, 0.5
    prior = sj.make_prior(
        {
            "rate": dist.LogNormal(-0.3, 0.7),
            "level": dist.Normal(0.0, 1.0),
            "volatility": dist.LogNormal(0.0, 0.5),
        }
    )

    def transition(theta: PyTree) -> tuple[Array, Array]:
        """Correlation of neighbours, and the stationary standard deviation."""
        correlation = jnp.exp(-interval * theta["rate"])
        return correlation, theta["volatility"] / jnp.sqrt(2.0 * theta["rate"])

    def simulator(key: Array, theta: PyTree) -> Array:
        correlation, sd = transition(theta)
        first, *rest = jax.random.normal(key, (length,))
        noise = jnp.sqrt(1.0 - correlation**2) * jnp.stack(rest)

        def step(u: Array, e: Array) -> tuple[Array, Array]:
            u = correlation * u + e
            return u, u

        _, later = jax.lax.scan(step, first, noise)
        return theta["level"] + sd * jnp.concatenate([first[None], later])

    def log_likelihood(theta: PyTree, x: Array) -> Array:
        correlation, sd = transition(theta)
        u = x - theta["level"]
        spread = sd * jnp.sqrt(1.0 - correlation**2)
        return normal(u[0], 0.0, sd) + normal(u[1:], correlation * u[:-1], spread)

    return Task(
        prior=prior,
        simulator=simulator,
        log_likelihood=log_likelihood,
        sample_exact=importance_posterior(prior, log_likelihood),
        embedding=networks.conv_1d(32),
        standardizer=networks.pooled(networks.robust()),
    )


def draw_set(key: Array, least: int, most: int, num_columns: int) -> sj.Trials:
    """Standard normal rows `[most, num_columns]`, at least `least` of them shown."""
    size_key, row_key = jax.random.split(key)
    size = jax.random.randint(size_key, (), least, most + 1)
    rows = jax.random.normal(row_key, (most, num_columns))
    return sj.Trials(rows, jnp.arange(most) < size)


def of_set() -> Task:
    """Mean and variance of a normal, from 5 to 100 draws.

    The prior is conjugate: an inverse gamma variance, and a mean that is normal
    with as large a variance given that one.
    """
    shape, rate, share = 3.0, 2.0, 1.0

    def model() -> None:
        variance = numpyro.sample("variance", dist.InverseGamma(shape, rate))
        numpyro.sample("mean", dist.Normal(0.0, jnp.sqrt(variance / share)))

    def simulator(key: Array, theta: PyTree) -> sj.Trials:
        rows, mask = draw_set(key, 5, 100, 1)
        return sj.Trials(theta["mean"] + jnp.sqrt(theta["variance"]) * rows, mask)

    def log_likelihood(theta: PyTree, x: sj.Trials) -> Array:
        each = dist.Normal(theta["mean"], jnp.sqrt(theta["variance"])).log_prob(x.x)
        return jnp.sum(x.mask[:, None] * each)

    def sample_exact(
        key: Array, x: sj.Trials, *, num_samples: int
    ) -> tuple[PyTree, Array]:
        gamma_key, normal_key = jax.random.split(key)
        shown, size = jnp.where(x.mask, x.x[:, 0], 0.0), jnp.sum(x.mask)
        average = jnp.sum(shown) / size
        squares = jnp.sum(x.mask * (shown - average) ** 2)
        loc = size * average / (share + size)
        new_rate = rate + 0.5 * (squares + share * loc * average)
        precision = jax.random.gamma(gamma_key, shape + size / 2.0, (num_samples,))
        variance = new_rate / precision
        noise = jax.random.normal(normal_key, (num_samples,))
        mean = loc + jnp.sqrt(variance / (share + size)) * noise
        return {"mean": mean, "variance": variance}, jnp.inf

    return Task(
        prior=sj.make_prior(model),
        simulator=simulator,
        log_likelihood=log_likelihood,
        sample_exact=sample_exact,
        embedding=networks.deep_set(32),
        standardizer=None,
    )


def several() -> Task:
    """The blob by an image of 16 x 16 pixels, 5 to 30 events, and a gauge of its width.

    Events are draws from the blob as a density, of width twice as large; the gauge
    reads the logarithm of the width with an error of .2.
    """
    size, noise, spread, error = 16, 0.75, 2.0, 0.2
    prior = sj.make_prior(
        {
            "position": dist.Uniform(3.0, 12.0).expand([2]).to_event(1),
            "width": dist.Uniform(1.5, 4.5),
        }
    )

    def simulator(key: Array, theta: PyTree) -> PyTree:
        image_key, event_key, gauge_key = jax.random.split(key, 3)
        rows, mask = draw_set(event_key, 5, 30, 2)
        events = theta["position"] + spread * theta["width"] * rows
        pixel_noise = noise * jax.random.normal(image_key, (size, size))
        return {
            "image": blob(theta, size) + pixel_noise,
            "events": sj.Trials(events, mask),
            "gauge": jnp.log(theta["width"]) + error * jax.random.normal(gauge_key),
        }

    def log_likelihood(theta: PyTree, x: PyTree) -> Array:
        rows, mask = x["events"]
        each = dist.Normal(theta["position"], spread * theta["width"]).log_prob(rows)
        return (
            normal(x["image"], blob(theta, size), noise)
            + jnp.sum(mask[:, None] * each)
            + normal(x["gauge"], jnp.log(theta["width"]), error)
        )

    return Task(
        prior=prior,
        simulator=simulator,
        log_likelihood=log_likelihood,
        sample_exact=importance_posterior(prior, log_likelihood),
        embedding=networks.fuse(
            {
                "image": networks.conv_2d(32),
                "events": networks.deep_set(16),
                "gauge": networks.mlp(4, hidden_sizes=(16,)),
            }
        ),
        standardizer=None,
    )


def hide_entries(key: Array, x: Array, rate: float = 0.3) -> Array:
    """NaN in place of entries, each with the same probability."""
    return jnp.where(jax.random.bernoulli(key, rate, x.shape), jnp.nan, x)


def missing() -> Task:
    """Coefficients of a cubic polynomial from 30 noisy points, 30 % of them missing."""
    noise = 0.5
    points = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, 30), 3)
    num_terms = points.shape[1]

    def simulator(key: Array, theta: Array) -> Array:
        return points @ theta + noise * jax.random.normal(key, (len(points),))

    def log_likelihood(theta: Array, x: Array) -> Array:
        there = jnp.isfinite(x)
        each = dist.Normal(points @ theta, noise).log_prob(jnp.where(there, x, 0.0))
        return jnp.sum(jnp.where(there, each, 0.0))

    def sample_exact(key: Array, x: Array, *, num_samples: int) -> tuple[Array, Array]:
        there = jnp.isfinite(x)
        seen = jnp.where(there[:, None], points, 0.0) / noise
        factor = jnp.linalg.cholesky(seen.T @ seen + jnp.eye(num_terms))
        solve = partial(jax.scipy.linalg.cho_solve, (factor, True))
        loc = solve(seen.T @ jnp.where(there, x, 0.0) / noise)
        white = jax.random.normal(key, (num_terms, num_samples))
        theta = jax.scipy.linalg.solve_triangular(factor.T, white, lower=False)
        return loc + theta.T, jnp.inf

    return Task(
        prior=sj.make_prior(dist.Normal(0.0, 1.0).expand([num_terms]).to_event(1)),
        simulator=simulator,
        log_likelihood=log_likelihood,
        sample_exact=sample_exact,
        embedding=None,
        standardizer=networks.missing(networks.robust()),
        adapt=sj.with_missing,
        observe=hide_entries,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "image": image,
    "series": series,
    "set": of_set,
    "several": several,
    "missing": missing,
}
