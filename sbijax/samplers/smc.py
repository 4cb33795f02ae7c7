"""Adaptive tempered sequential Monte Carlo.

Particles from the prior follow p(z) p(x | z)^lambda as lambda rises from 0 to 1,

    w_i = p(x | z_i)^(lambda' - lambda),

with lambda' such that the effective sample size of the weights is a set share of
the particles.  They are resampled and moved at each temperature, and once more at
lambda = 1.  Particles are everywhere from the start, so modes are found and keep
their mass; several independent populations tell by R-hat whether that worked.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Sampler, Target
from sbijax.checks import check_count, check_fraction
from sbijax.samplers.report import NO_DENSITY, guard, report

__all__ = ["tempered_smc"]

_CANDIDATES = 10  # draws from the prior per particle
_SHARE_OF_JUMPS = 0.2  # moves by the full difference of two particles
_SHORTEST_STEP = -1.5  # log10 of the smallest scale, the largest being 1
_JITTER = 1e-4


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

        def run(key: Array) -> tuple[Array, ...]:
            return _run(
                key, target, num_particles, num_steps, target_ess, max_temperatures
            )

        particles, arrived, acceptance, log_evidence = jax.vmap(run)(
            jax.random.split(key, num_populations)
        )
        failed = ~arrived
        evidence = jnp.where(failed, -jnp.inf, log_evidence)
        mean = jax.nn.logsumexp(evidence) - jnp.log(jnp.sum(~failed))
        particles, info = report(
            particles, acceptance=acceptance, failed=failed, log_evidence=mean
        )
        # Neighbours descend from one ancestor: take evenly spaced ones.
        kept = jnp.arange(length) * num_particles // length
        return particles[:, kept], info

    return sampler


def _run(
    key: Array,
    target: Target,
    num_particles: int,
    num_steps: int,
    target_ess: float,
    max_temperatures: int,
) -> tuple[Array, Array, Array, Array]:
    """One population: particles, whether they arrived, acceptance, log-evidence."""
    import blackjax
    from blackjax.smc import adaptive_tempered, ess, resampling, solver

    prior_key, first_key, loop_key = jax.random.split(key, 3)
    log_likelihood = guard(target.log_likelihood)
    kernel = adaptive_tempered.build_kernel(
        guard(target.log_prior),
        log_likelihood,
        _make_move(blackjax.rmh.build_kernel()),
        blackjax.rmh.init,
        resampling.systematic,
        target_ess,
        update_strategy=_keep_last,
    )

    def is_going(carry: tuple) -> Array:
        i, _, _, is_done, _, _ = carry
        return ~is_done & (i < max_temperatures)

    def step(carry: tuple) -> tuple:
        i, key, state, _, _, log_evidence = carry
        key, step_key = jax.random.split(key)
        # The kernel moves the particles at the temperature they come with, and
        # weighs them for the next one: at lambda = 1 one more step is due.
        is_done = state.tempering_param >= 1.0
        parameters = {"pool": state.particles[None]}
        state, info = kernel(step_key, state, num_steps, parameters)
        acceptance = jnp.mean(info.update_info)
        log_evidence = log_evidence + info.log_likelihood_increment
        return i + 1, key, state, is_done, acceptance, log_evidence

    # The prior gives as many particles as one likes, and they need no move: many
    # of them carry the population a good part of the way.
    candidates = jax.vmap(target.sample_prior)(
        jax.random.split(prior_key, _CANDIDATES * num_particles)
    )
    blocks = candidates.reshape(_CANDIDATES, num_particles, -1)
    each = jax.lax.map(jax.vmap(log_likelihood), blocks).ravel()
    first = ess.ess_solver(
        lambda _: each, candidates, target_ess / _CANDIDATES, 1.0, solver.dichotomy
    )
    weights = jax.nn.softmax(first * each)
    chosen = resampling.systematic(first_key, weights, num_particles)
    particles = candidates[chosen]
    state = adaptive_tempered.init(particles)._replace(tempering_param=first)
    log_evidence = jax.nn.logsumexp(first * each) - jnp.log(each.size)
    nowhere = jnp.all(each <= NO_DENSITY)
    zero = jnp.zeros((), particles.dtype)
    start = (0, loop_key, state, nowhere, zero, log_evidence)
    _, _, state, is_done, acceptance, log_evidence = jax.lax.while_loop(
        is_going, step, start
    )
    return state.particles, is_done & ~nowhere, acceptance, log_evidence


def _keep_last(
    init: Callable,
    log_density: Callable,
    move: Callable,
    num_mcmc_steps: int,
    n_particles: int,
) -> tuple[Callable, int]:
    """Move every particle `num_mcmc_steps` times; report its acceptance rate.

    BlackJAX's own strategy keeps the info of every step, and it scans over keys,
    which the key-reuse checker of JAX mistakes for reuse under `vmap`.
    """

    def update(key: Array, z: Array, parameters: dict) -> tuple[Array, Array]:
        def step(_: int, carry: tuple) -> tuple:
            key, state, rate = carry
            key, move_key = jax.random.split(key)
            state, info = move(move_key, state, log_density, **parameters)
            return key, state, rate + info.acceptance_rate / num_mcmc_steps

        start = (key, init(z, log_density), jnp.zeros((), z.dtype))
        _, state, rate = jax.lax.fori_loop(0, num_mcmc_steps, step, start)
        return state.position, rate

    return jax.vmap(update), n_particles


def _make_move(kernel: Callable) -> Callable:
    """A Metropolis step along the difference of two particles of the pool.

    The two are drawn from the population as it was before the moves, so that
    the proposal is symmetric.
    """

    def move(key: Array, state: Any, log_density: Callable, pool: Array) -> tuple:
        num_particles, num_dims = pool.shape
        draw_key, key = jax.random.split(key)
        # One call for all random numbers compiles and runs several times faster.
        u = jax.random.uniform(draw_key, (5 + 2 * num_dims,), pool.dtype)
        (i, j, share, size, jump), of_dims = u[:5], u[5:].reshape(2, num_dims)
        pair = jnp.floor(jnp.stack([i, j]) * num_particles).astype(int)
        first, second = pool[jnp.minimum(pair, num_particles - 1)]
        moved = of_dims[0] < share
        scale = 10.0 ** (_SHORTEST_STEP * size)
        scale = scale * 2.38 / jnp.sqrt(2.0 * jnp.maximum(jnp.sum(moved), 1))
        scale = jnp.where(jump < _SHARE_OF_JUMPS, 1.0, scale)
        step = jnp.where(moved, scale * (first - second), 0.0)
        step = step + _JITTER * jnp.std(pool, axis=0) * (of_dims[1] - 0.5)
        return kernel(key, state, log_density, lambda _, z: z + step)

    return move
