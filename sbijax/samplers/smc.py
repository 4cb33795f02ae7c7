"""Adaptive tempered sequential Monte Carlo.

Particles from the prior follow p(z) p(x | z)^lambda as lambda rises from 0 to 1,

    w_i = p(x | z_i)^(lambda' - lambda),

with lambda' such that the effective sample size of the weights is a set share of
the particles.  They are resampled and moved at each temperature, and once more at
lambda = 1.  Particles are everywhere from the start, so modes are found and keep
their mass; several independent populations tell by R-hat whether that worked.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Sampler, Target
from sbijax.checks import check_count, check_fraction
from sbijax.noise import uniform
from sbijax.samplers.report import NO_DENSITY, guard, report
from sbijax.samplers.weights import resample

__all__ = ["tempered_smc"]

_CANDIDATES = 10  # draws from the prior per particle
_SHARE_OF_JUMPS = 0.2  # moves by the full difference of two particles
_SHORTEST_STEP = -1.5  # log10 of the smallest scale, the largest being 1
_JITTER = 1e-4


class _Particles(NamedTuple):
    """Positions `[N, D]` with their densities `[N]`: nothing is computed twice."""

    z: Array
    log_prior: Array
    log_likelihood: Array


class _Population(NamedTuple):
    """The loop's carry; `particles` are resampled for `temperature`, but not moved."""

    step: Array
    key: Array
    particles: _Particles
    temperature: Array
    is_done: Array
    acceptance: Array
    log_evidence: Array


def tempered_smc(
    *,
    num_populations: int = 4,
    min_particles: int = 250,
    num_steps: int = 20,
    target_ess: float = 0.5,
    max_temperatures: int = 50,
) -> Sampler:
    """Tempered SMC, the default sampler: it needs no gradient and finds all modes.

    The moves are random-walk Metropolis along differences of two other
    particles, in random subsets of the coordinates and at random scales.

    Args:
        num_populations: independent runs C; each has S / C particles.
        min_particles: number of particles of a population where S asks for
            fewer; an even selection of them is returned.
        num_steps: moves of every particle at each temperature.
        target_ess: effective share of the particles that the next temperature
            has to leave, between 0 and 1.
        max_temperatures: a population that has not reached lambda = 1 by then
            has failed.

    Returns:
        A sampler; its `log_evidence` averages over the populations.

    Raises:
        ValueError: a count below 1, or a share outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers import tempered_smc
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> z, info = tempered_smc()(jax.random.key(0), target, num_samples=1000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((4, 250, 1), True)

    Reference:
        Del Moral, Doucet, Jasra. Sequential Monte Carlo samplers, 2006.
        ter Braak, Vrugt. Differential evolution Markov chain with snooker
        updater and fewer chains, 2008.
    """
    num_populations = check_count(num_populations, "num_populations")
    min_particles = check_count(min_particles, "min_particles", least=2)
    num_steps = check_count(num_steps, "num_steps")
    target_ess = check_fraction(target_ess, "target_ess")
    max_temperatures = check_count(max_temperatures, "max_temperatures")

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        length = -(-num_samples // num_populations)
        num_particles = max(length, min_particles)

        evaluate = _make_evaluate(target)

        def is_going(run: _Population) -> Array:
            return ~run.is_done & (run.step < max_temperatures)

        def step(run: _Population) -> _Population:
            return _step(run, evaluate, num_steps, target_ess)

        def populate(key: Array) -> _Population:
            start = _start(key, target, evaluate, num_particles, target_ess)
            return jax.lax.while_loop(is_going, step, start)

        run = jax.vmap(populate)(jax.random.split(key, num_populations))
        nowhere = jnp.all(run.particles.log_likelihood <= NO_DENSITY, axis=1)
        failed = ~run.is_done | nowhere
        evidence = jnp.where(failed, -jnp.inf, run.log_evidence)
        mean = jax.nn.logsumexp(evidence) - jnp.log(jnp.sum(~failed))
        z, info = report(
            run.particles.z,
            acceptance=run.acceptance,
            failed=failed,
            log_evidence=mean,
        )
        # Neighbours descend from one ancestor: take evenly spaced ones.
        kept = jnp.arange(length) * num_particles // length
        return z[:, kept], info

    return sampler


def _make_evaluate(target: Target) -> Callable[[Array], _Particles]:
    """Positions `[n, D]` with their densities, guarded."""
    log_prior = jax.vmap(guard(target.log_prior))
    log_likelihood = jax.vmap(guard(target.log_likelihood))
    return lambda z: _Particles(z, log_prior(z), log_likelihood(z))


def _start(
    key: Array,
    target: Target,
    evaluate: Callable[[Array], _Particles],
    num_particles: int,
    target_ess: float,
) -> _Population:
    """Particles for the first temperature.

    The prior gives as many as one likes, and they need no move: many of them
    carry the population a good part of the way.
    """
    prior_key, resample_key, loop_key = jax.random.split(key, 3)
    num_candidates = _CANDIDATES * num_particles
    z = jax.vmap(target.sample_prior)(jax.random.split(prior_key, num_candidates))
    blocks = jax.lax.map(evaluate, z.reshape(_CANDIDATES, num_particles, -1))
    candidates = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), blocks)
    zero = jnp.zeros((), z.dtype)
    temperature, weights, log_evidence = _heat(
        candidates.log_likelihood, zero, target_ess / _CANDIDATES
    )
    chosen = resample(resample_key, weights, num_particles)
    return _Population(
        step=jnp.zeros((), int),
        key=loop_key,
        particles=jax.tree.map(lambda leaf: leaf[chosen], candidates),
        temperature=temperature,
        is_done=jnp.zeros((), bool),
        acceptance=zero,
        log_evidence=log_evidence,
    )


def _step(
    run: _Population,
    evaluate: Callable[[Array], _Particles],
    num_steps: int,
    target_ess: float,
) -> _Population:
    """Move all particles, then choose among them for the next temperature."""
    key, move_key, resample_key = jax.random.split(run.key, 3)
    particles, acceptance = _move(
        move_key, run.particles, run.temperature, evaluate, num_steps
    )
    is_done = run.temperature >= 1.0
    temperature, weights, increment = _heat(
        particles.log_likelihood, run.temperature, target_ess
    )
    chosen = resample(resample_key, weights, weights.size)
    chosen = jnp.where(is_done, jnp.arange(weights.size), chosen)
    return _Population(
        step=run.step + 1,
        key=key,
        particles=jax.tree.map(lambda leaf: leaf[chosen], particles),
        temperature=temperature,
        is_done=is_done,
        acceptance=acceptance,
        log_evidence=run.log_evidence + increment,
    )


def _heat(
    log_likelihood: Array, temperature: Array, target_ess: float
) -> tuple[Array, Array, Array]:
    """The next lambda, the weights of all particles for it, and their log-mean."""
    from blackjax.smc import ess, solver

    increment = ess.ess_solver(
        lambda each: each,
        log_likelihood,
        target_ess,
        1.0 - temperature,
        solver.dichotomy,
    )
    log_weights = increment * log_likelihood
    log_sum = jax.nn.logsumexp(log_weights)
    # Where the rest of the way is taken at once the sum may fall short of 1.
    is_last = increment >= 1.0 - temperature
    return (
        jnp.where(is_last, 1.0, temperature + increment),
        jnp.exp(log_weights - log_sum),
        log_sum - jnp.log(log_likelihood.size),
    )


def _move(
    key: Array,
    particles: _Particles,
    temperature: Array,
    evaluate: Callable[[Array], _Particles],
    num_steps: int,
) -> tuple[_Particles, Array]:
    """Metropolis steps along differences of two particles, and their acceptance.

    The two are drawn from the population as it was before the moves, so that
    the proposal is symmetric.
    """
    pool = particles.z
    num_particles, num_dims = pool.shape
    jitter = _JITTER * jnp.std(pool, axis=0)

    def pick(u: Array) -> Array:
        index = jnp.floor(u * num_particles).astype(int)
        return pool[jnp.minimum(index, num_particles - 1)]

    def step(_: int, carry: tuple) -> tuple:
        key, old, rate = carry
        key, draw_key = jax.random.split(key)
        # One call for all random numbers compiles and runs several times faster.
        u = uniform(draw_key, (num_particles, 6 + 2 * num_dims), pool.dtype)
        first, second, share, size, jump, accept = u[:, :6].T
        of_dims, noise = u[:, 6 : 6 + num_dims], u[:, 6 + num_dims :]
        moved = of_dims < share[:, None]
        scale = 10.0 ** (_SHORTEST_STEP * size)
        scale = scale * 2.38 / jnp.sqrt(2.0 * jnp.maximum(jnp.sum(moved, axis=1), 1))
        scale = jnp.where(jump < _SHARE_OF_JUMPS, 1.0, scale)
        difference = scale[:, None] * (pick(first) - pick(second))
        z = old.z + jnp.where(moved, difference, 0.0) + jitter * (noise - 0.5)
        new = evaluate(z)
        log_ratio = new.log_prior - old.log_prior
        log_ratio += temperature * (new.log_likelihood - old.log_likelihood)
        accepted = jnp.log(accept) < log_ratio

        def choose(new: Array, old: Array) -> Array:
            mask = accepted.reshape((-1,) + (1,) * (new.ndim - 1))
            return jnp.where(mask, new, old)

        rate = rate + jnp.mean(accepted, dtype=pool.dtype) / num_steps
        return key, jax.tree.map(choose, new, old), rate

    start = (key, particles, jnp.zeros((), pool.dtype))
    _, particles, rate = jax.lax.fori_loop(0, num_steps, step, start)
    return particles, rate
