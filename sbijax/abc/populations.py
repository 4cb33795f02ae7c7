"""Populations of particles whose distance to the observation falls.

Each population simulates M new particles from a mixture q around the last one, and of
those and the old ones the N closest stay; the largest of their distances is the next
tolerance epsilon.  Old and new particles are two weighted samples of the same

    p(z | d(s(z), s_o) <= epsilon),   w_old unchanged,   w_new = p(z) / q(z),

each normalised by itself, and joined in proportion to their numbers.  (By effective
sizes they would be worth less whenever one of them is rare and heavy, and the tails
would be lost.)  So every population costs M simulations, no more, and none that is
close enough is thrown away.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.abc.distances import Distance
from sbijax.abc.kernels import Kernel, mixture_log_density
from sbijax.base import Array, PyTree
from sbijax.noise import normal
from sbijax.samplers.weights import resample

__all__ = ["History", "Particles", "Problem", "Schedule", "run_populations"]

_MAX_CENTRES = 500
_CHUNK = 5_000

BUDGET, TOLERANCE, ACCEPTANCE, NOTHING, UNREACHED = range(5)


class Problem(NamedTuple):
    """What is to be inferred, in the vector form of theta.

    `sample_prior(key) -> z`, `log_prior(z) -> scalar`, `simulate(key, z) -> s` for a
    pytree of summaries, and `observed`, those of the observation.
    """

    sample_prior: Callable[[Array], Array]
    log_prior: Callable[[Array], Array]
    simulate: Callable[[Array, Array], PyTree]
    observed: PyTree


class Schedule(NamedTuple):
    """How many of everything, and when to stop.

    Without populations after the first this is rejection.  `num_simulations` is met
    exactly unless something else stops earlier: the first population takes what
    division leaves.
    """

    num_particles: int
    num_new: int
    num_simulations: int
    min_tolerance: float | Array
    min_acceptance: float

    @property
    def num_populations(self) -> int:
        """Populations after the first."""
        return (self.num_simulations - self.num_particles) // self.num_new

    @property
    def num_first(self) -> int:
        """Draws from the prior."""
        return self.num_simulations - self.num_populations * self.num_new


class Particles(NamedTuple):
    """Rows of z `[N, D]`, summaries, distances and normalised weights `[N]`."""

    z: Array
    s: PyTree
    distance: Array
    weight: Array


class History(NamedTuple):
    """Tolerance, acceptance and effective size `[P]` of each population, then NaN."""

    tolerance: Array
    acceptance: Array
    ess: Array


class _State(NamedTuple):
    key: Array
    particles: Particles
    history: History
    population: Array
    num_failed: Array
    stop: Array


def run_populations(
    key: Array,
    problem: Problem,
    distance: Distance,
    scale: PyTree,
    kernel: Kernel,
    schedule: Schedule,
) -> tuple[Particles, History, dict[str, Array]]:
    """Draw from the prior, then move closer until the schedule says stop.

    Returns:
        The particles, the history, and counts: `num_populations` after the first,
        `num_simulations`, `num_failed` of them without a distance, and `stop_reason`.

    Reference:
        Lenormand, Jabot, Deffuant. Adaptive approximate Bayesian computation for
        complex models, 2013.
    """
    num_populations = schedule.num_populations
    prior_key, first_key, key = jax.random.split(key, 3)
    z = jax.vmap(problem.sample_prior)(jax.random.split(prior_key, schedule.num_first))
    s = _simulate(first_key, problem, z)
    if distance.adapts:
        scale = _fit(distance, s, scale)
    measured, num_failed = _measure(distance, scale, s, problem.observed)
    rows = _closest(measured, schedule.num_particles)
    near = measured[rows]
    weight = _normalise(jnp.zeros_like(near), near < jnp.inf)
    particles = Particles(z[rows], _take(s, rows), near, weight)

    empty = jnp.full(num_populations + 1, jnp.nan, z.dtype)
    history = _record(History(empty, empty, empty), 0, particles, jnp.ones(()))
    nowhere = ~jnp.any(near < jnp.inf)
    stop = jnp.where(nowhere, NOTHING, _reason(particles, jnp.ones(()), schedule))
    state = _State(key, particles, history, jnp.zeros((), int), num_failed, stop)

    def is_going(state: _State) -> Array:
        return (state.stop == BUDGET) & (state.population < num_populations)

    def step(state: _State) -> _State:
        return _next(state, problem, distance, scale, kernel, schedule)

    state = jax.lax.while_loop(is_going, step, state)
    spent = state.stop == BUDGET
    unreached = spent & (schedule.min_tolerance > 0)
    counts = {
        "num_populations": state.population,
        "num_simulations": schedule.num_first + state.population * schedule.num_new,
        "num_failed": state.num_failed,
        "stop_reason": jnp.where(unreached, UNREACHED, state.stop),
    }
    return state.particles, state.history, counts


def _next(
    state: _State,
    problem: Problem,
    distance: Distance,
    scale: PyTree,
    kernel: Kernel,
    schedule: Schedule,
) -> _State:
    """One population more."""
    key, centre_key, order_key, move_key, simulator_key = jax.random.split(state.key, 5)
    old, num_new = state.particles, schedule.num_new
    size = old.distance.size
    num_centres = min(size, _MAX_CENTRES)
    centres = old.z[resample(centre_key, old.weight, num_centres)]
    factors = kernel(centres)
    # Centres stand in the order of their distances: take them all, or some at random.
    order = jax.random.permutation(order_key, num_centres)
    picked = order[jnp.arange(num_new) % num_centres]
    noise = normal(move_key, (num_new, old.z.shape[1]), old.z.dtype)
    z = centres[picked] + jnp.einsum("nij,nj->ni", factors[picked], noise)
    s = _simulate(simulator_key, problem, z)
    distances = old.distance
    if distance.adapts:
        scale = _fit(distance, s, scale)
        distances, _ = _measure(distance, scale, old.s, problem.observed)
        distances = jnp.where(old.weight > 0, distances, jnp.inf)
    measured, num_failed = _measure(distance, scale, s, problem.observed)

    everything = jnp.concatenate([distances, measured])
    rows = _closest(everything, size)
    is_new, near = rows >= size, everything[rows]

    def join(a: Array, b: Array) -> Array:
        return jnp.concatenate([a, b])[rows]

    z = join(old.z, z)
    # Those without weight have none from their kernel either; any place will do.
    place = jnp.where(jnp.isfinite(z), z, 0.0)
    log_q = mixture_log_density(centres, factors, place)
    log_new = jax.vmap(problem.log_prior)(place) - log_q
    log_old = jnp.log(old.weight[jnp.minimum(rows, size - 1)])
    counts = near < jnp.inf
    weight_new = _normalise(log_new, is_new & counts)
    weight_old = _normalise(log_old, ~is_new & counts)
    share = jnp.sum(is_new & counts) / jnp.maximum(jnp.sum(counts), 1)
    weight = share * weight_new + (1.0 - share) * weight_old

    particles = Particles(z, jax.tree.map(join, old.s, s), near, weight)
    population = state.population + 1
    acceptance = jnp.sum(is_new & counts) / num_new
    return _State(
        key=key,
        particles=particles,
        history=_record(state.history, population, particles, acceptance),
        population=population,
        num_failed=state.num_failed + num_failed,
        stop=_reason(particles, acceptance, schedule),
    )


def _simulate(key: Array, problem: Problem, z: Array) -> PyTree:
    """Summaries of one simulation for each row, chunk by chunk."""
    keys = jax.random.split(key, len(z))
    if len(z) <= _CHUNK:
        return jax.vmap(problem.simulate)(keys, z)
    return jax.lax.map(lambda a: problem.simulate(*a), (keys, z), batch_size=_CHUNK)


def _fit(distance: Distance, s: PyTree, before: PyTree) -> PyTree:
    """Scales of these rows; those before where none of the rows is a number."""
    size = len(jax.tree.leaves(s)[0])
    valid = jnp.ones(size, bool)
    for leaf in jax.tree.leaves(s):
        valid &= jnp.all(jnp.isfinite(leaf.reshape(size, -1)), axis=1)
    fitted = distance.fit(s, valid.astype(float))
    return jax.tree.map(
        lambda a, b: jnp.where(jnp.any(valid) & jnp.isfinite(a), a, b), fitted, before
    )


def _measure(
    distance: Distance, scale: PyTree, s: PyTree, observed: PyTree
) -> tuple[Array, Array]:
    """Distances `[n]`, infinite where they fail, and how many fail."""
    found = jax.vmap(lambda one: distance.between(scale, one, observed))(s)
    fails = jnp.isnan(found) | (found < 0)
    return jnp.where(fails, jnp.inf, found), jnp.sum(fails)


def _closest(distances: Array, num: int) -> Array:
    """Indices of the `num` smallest."""
    return jax.lax.top_k(-distances, num)[1]


def _normalise(log_weight: Array, mask: Array) -> Array:
    """Weights `[N]` that sum to 1 where the mask is, or all are 0."""
    log_weight = jnp.where(mask, log_weight, -jnp.inf)
    there = jnp.max(log_weight) > -jnp.inf
    weight = jax.nn.softmax(jnp.where(there, log_weight, 0.0))
    return jnp.where(there & mask, weight, 0.0)


def _record(
    history: History, population: int | Array, particles: Particles, acceptance: Array
) -> History:
    ess = 1.0 / jnp.sum(particles.weight**2)
    values = History(jnp.max(particles.distance), acceptance, ess)
    return jax.tree.map(lambda row, v: row.at[population].set(v), history, values)


def _reason(particles: Particles, acceptance: Array, schedule: Schedule) -> Array:
    """Why to stop here; `BUDGET` while there is no other reason."""
    reached = jnp.max(particles.distance) <= schedule.min_tolerance
    slow = acceptance < schedule.min_acceptance
    return jnp.where(reached, TOLERANCE, jnp.where(slow, ACCEPTANCE, BUDGET))


def _take(tree: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], tree)
