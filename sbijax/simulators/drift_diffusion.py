"""Drift diffusion: choices and reaction times of a decision between two options.

Evidence starts at w a between two boundaries 0 and a and diffuses,

    dz = v dt + dW,

until it meets one of them; the choice is which, and the reaction time is the
first-passage time plus a time t_0 that has nothing to do with the decision.  The
first passage of the lower boundary has the density

    f(t) = exp(-v a w - v^2 t / 2) / a^2 * f_0(t / a^2),

    f_0(u) = (2 pi u^3)^(-1/2) sum_k (w + 2 k) exp(-(w + 2 k)^2 / (2 u))
           = pi sum_{k >= 1} k exp(-k^2 pi^2 u / 2) sin(k pi w),

of which the first series converges fast for short times, the second for long
ones.  The upper boundary is the lower one with v -> -v and w -> 1 - w.
"""

import math

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.simulators.task import Task, task_factory

__all__ = ["drift_diffusion"]

_SWITCH = 0.4  # of u, where both series have converged
_NUM_TERMS = 6
_GRID_SIZE = 1_000
_LAST = 8.0  # of u: the rest has a probability below 1e-16


@task_factory
def drift_diffusion() -> Task:
    """Choices and reaction times, the test case of likelihoods of mixed data.

    theta is `{"drift", "boundary", "bias", "delay"}` (evidence per second,
    evidence, a share of the boundary, seconds), uniform on (-2, 2), (0.5, 2),
    (0.3, 0.7) and (0.2, 1.8).  x is `{"choice": 0 or 1, "time": seconds}`, where 1
    is the upper boundary.

    Returns:
        The task; it has no observation.

    Example:
        >>> import jax
        >>> from sbijax.simulators import drift_diffusion
        >>> task = drift_diffusion()
        >>> theta = {"drift": 1.0, "boundary": 1.5, "bias": 0.5, "delay": 0.3}
        >>> sorted(task.simulator(jax.random.key(0), theta))
        ['choice', 'time']

    Reference:
        Navarro, Fuss. Fast and accurate calculations for first-passage times in
        Wiener diffusion models, 2009.
        Boelts, Lueckmann, Gao, Macke. Flexible and efficient simulation-based
        inference for models of decision-making, 2022.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    return Task(
        name="drift_diffusion",
        prior=make_prior(
            {
                "drift": dist.Uniform(-2.0, 2.0),
                "boundary": dist.Uniform(0.5, 2.0),
                "bias": dist.Uniform(0.3, 0.7),
                "delay": dist.Uniform(0.2, 1.8),
            }
        ),
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=None,
        num_categories={"choice": 2, "time": 0},
    )


def _simulator(key: Array, theta: PyTree) -> PyTree:
    """Draw the choice, then its time by inverting the distribution on a grid."""
    choice_key, time_key = jax.random.split(key)
    p_upper = _probability_of_upper(theta)
    choice = jax.random.bernoulli(choice_key, p_upper).astype(p_upper.dtype)
    # Finer where times are short; the density is taken as constant in between.
    ends = _LAST * jnp.linspace(0.0, 1.0, _GRID_SIZE + 1) ** 2
    middles = (ends[1:] + ends[:-1]) / 2.0
    scale = jnp.asarray(theta["boundary"]) ** 2
    log_density = jax.vmap(lambda u: _log_passage(u * scale, choice, theta))(middles)
    mass = jnp.exp(log_density - jnp.max(log_density)) * jnp.diff(ends)
    below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(mass)])
    level = jax.random.uniform(time_key) * below[-1]
    time = theta["delay"] + scale * jnp.interp(level, below, ends)
    return {"choice": choice, "time": time}


def _log_likelihood(theta: PyTree, x: PyTree) -> Array:
    decision = jnp.asarray(x["time"]) - theta["delay"]
    choice = jnp.asarray(x["choice"])
    possible = (decision > 0.0) & ((choice == 0.0) | (choice == 1.0))
    value = _log_passage(jnp.where(possible, decision, 1.0), choice, theta)
    return jnp.where(possible, value, -jnp.inf)


def _probability_of_upper(theta: PyTree) -> Array:
    """P(upper) = (1 - exp(-2 v a w)) / (1 - exp(-2 v a)), and w without drift."""
    v, a, w = (jnp.asarray(theta[k]) for k in ("drift", "boundary", "bias"))
    small = jnp.abs(v) < 1e-4
    v = jnp.where(small, 1.0, v)
    share = jnp.expm1(-2.0 * v * a * w) / jnp.expm1(-2.0 * v * a)
    return jnp.where(small, w, share)


def _log_passage(time: Array, choice: Array, theta: PyTree) -> Array:
    """log f(t) of the boundary that was chosen, t > 0."""
    v, a, w = (jnp.asarray(theta[k]) for k in ("drift", "boundary", "bias"))
    v, w = jnp.where(choice > 0, -v, v), jnp.where(choice > 0, 1.0 - w, w)
    u = time / a**2
    short = _log_short(jnp.minimum(u, _SWITCH), w)
    long = _log_long(jnp.maximum(u, _SWITCH), w)
    log_f0 = jnp.where(u < _SWITCH, short, long)
    return log_f0 - v * a * w - v**2 * time / 2.0 - 2.0 * jnp.log(a)


def _log_short(u: Array, w: Array) -> Array:
    u = jnp.maximum(u, 1e-6)
    k = jnp.arange(-_NUM_TERMS, _NUM_TERMS + 1)
    # Relative to the term k = 0, of which all others are small corrections.
    terms = (w + 2.0 * k) / w * jnp.exp(-2.0 * k * (k + w) / u)
    total = jnp.maximum(jnp.sum(terms), jnp.finfo(terms.dtype).tiny)
    lead = jnp.log(w) - w**2 / (2.0 * u)
    return lead - 0.5 * math.log(2.0 * math.pi) - 1.5 * jnp.log(u) + jnp.log(total)


def _log_long(u: Array, w: Array) -> Array:
    k = jnp.arange(1, _NUM_TERMS + 1)
    decay = jnp.exp(-((k**2 - 1) * math.pi**2) * u / 2.0)
    total = jnp.sum(k * decay * jnp.sin(k * math.pi * w))
    total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    return math.log(math.pi) - math.pi**2 * u / 2.0 + jnp.log(total)
