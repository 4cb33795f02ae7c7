"""Simulated annealing ABC, to compare with SMC-ABC after as many simulations.

    python -m benchmarks.annealing_abc two_moons --knobs 1000 90 1.2 .05 .5 .5

N particles (z, u), with u the prior predictive cdf of their distances, are a sample of

    p(z) p(u | z) exp(-u / epsilon),   epsilon falling,

moved by Metropolis steps, each with one new simulation.  The prior predictive of u is
uniform.  For particles that are exponential in u with mean U, proposed from there, a
sweep changes U by epsilon^2 - U^2, and the entropy that it produces is always the same
if the change is proportional to epsilon^{3/2}: hence

    epsilon^2 + v epsilon^{3/2} = U^2.

Reference: Albert, Kuensch, Scheidegger. A simulated annealing approach to approximate
Bayes computations, 2015.

Scores and budget are those of `benchmarks.abc`; `Knobs` has the order of `--knobs`.
A line of `results/annealing_abc.jsonl` is a run; 2,000 draws were to choose the knobs.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sbijax as sj
from benchmarks.common import (
    RESULTS,
    append_row,
    environment,
    missing_observations,
    run_fresh,
    score_draws,
    to_matrix,
)
from benchmarks.reference import load_reference
from sbijax.abc.adjustment import epanechnikov
from sbijax.base import Array
from sbijax.samplers.weights import draw_weighted, resample

__all__ = ["main"]

NUM_SIMULATIONS = 100_000
METHODS = {"two_moons": ["annealing"]}
METHODS["gaussian_linear"] = ["annealing, linear", "annealing"]


class Knobs(NamedTuple):
    """Particles N, sweeps over them, speed v, covariance of a step over that of z.

    Particles are resampled with weights exp(-delta u / U) after `rest` moves of each.
    What the sweeps leave of the budget are draws from the prior.
    """

    num_particles: int
    num_sweeps: int
    v: float = 1.2
    beta: float = 0.8
    rest: float = 5.0
    delta: float = 0.1


class Particles(NamedTuple):
    """Rows of z `[N, D]`, data `[N, K]`, distances and u `[N]`."""

    z: Array
    x: Array
    distance: Array
    u: Array


@partial(jax.jit, static_argnums=(0, 1))
def anneal(
    task: Callable[[], sj.simulators.Task], knobs: Knobs, key: Array, observed: Array
) -> tuple[Particles, dict[str, Array]]:
    """Particles after all sweeps, and the last U, epsilon and share that moved."""
    _, prior, simulator, *_ = task()
    size, num_sweeps, v, beta, rest, delta = knobs
    num_pilots = NUM_SIMULATIONS - num_sweeps * size
    prior_key, pilot_key, start_key, sweeps_key = jax.random.split(key, 4)

    def simulate(key: Array, z: Array) -> Array:
        keys, theta = jax.random.split(key, len(z)), jax.vmap(prior.from_vector)(z)
        return jax.vmap(simulator)(keys, theta)

    def log_prior(z: Array) -> Array:
        return prior.log_prob(prior.from_vector(z)) + prior.log_det(z)

    theta = jax.vmap(prior.sample)(jax.random.split(prior_key, num_pilots))
    z = jax.vmap(prior.to_vector)(theta)
    x = simulate(pilot_key, z)
    metric = sj.abc.euclidean()
    scale = metric.fit(x, jnp.ones(num_pilots))
    measure = jax.vmap(lambda one: metric.between(scale, one, observed))
    knots = jnp.concatenate([jnp.zeros(1), jnp.sort(measure(x))])
    levels = jnp.linspace(0.0, 1.0, num_pilots + 1)

    def make(z: Array, x: Array) -> Particles:
        distance = measure(x)
        return Particles(z, x, distance, jnp.interp(distance, knots, levels))

    def take(particles: Particles, weight: Array, key: Array) -> Particles:
        rows = resample(key, weight / jnp.sum(weight), size)
        return jax.tree.map(lambda leaf: leaf[rows], particles)

    def sweep(state: tuple[Particles, Array], key: Array) -> Any:
        old, moves = state
        move_key, simulator_key, accept_key, rest_key = jax.random.split(key, 4)
        epsilon = _temperature(jnp.mean(old.u), v)
        covariance = beta * jnp.cov(old.z.T) + 1e-6 * jnp.eye(prior.num_dims)
        factor = jnp.linalg.cholesky(covariance)
        z = old.z + jax.random.normal(move_key, old.z.shape) @ factor.T
        new = make(z, simulate(simulator_key, z))
        log_ratio = jax.vmap(log_prior)(z) - jax.vmap(log_prior)(old.z)
        log_ratio -= (new.u - old.u) / epsilon
        accepted = jnp.log(jax.random.uniform(accept_key, (size,))) < log_ratio
        # The transpose has the particles last, as `accepted` has.
        now = jax.tree.map(lambda a, b: jnp.where(accepted, a.T, b.T).T, new, old)
        moves += jnp.mean(accepted)
        weight = jnp.exp(-delta * now.u / jnp.mean(now.u))
        rests = moves >= rest
        now = jax.lax.cond(rests, lambda: take(now, weight, rest_key), lambda: now)
        took = {"u": jnp.mean(now.u), "epsilon": epsilon, "moved": jnp.mean(accepted)}
        return (now, jnp.where(rests, 0.0, moves)), took

    # Accepted with probability exp(-u / epsilon_0), about N of the pilots are left.
    pilots = make(z, x)
    start = take(pilots, jnp.exp(-pilots.u * num_pilots / size), start_key)
    state, keys = (start, jnp.zeros(())), jax.random.split(sweeps_key, num_sweeps)
    (last, _), took = jax.lax.scan(sweep, state, keys)
    return last, {name: values[-1] for name, values in took.items()}


def _temperature(mean: Array, v: float) -> Array:
    """The root of epsilon^2 + v epsilon^{3/2} = U^2 between 0 and U, by bisection."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        below = middle**2 + v * middle**1.5 < mean**2
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(mean), mean))[1]


def draw(cases: list[dict[str, Any]]) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Draws `[S, D]` of each case, and its row without a score."""
    found = []
    for case in cases:
        task, k = getattr(sj.simulators, case["task"]), case["observation"]
        knobs = Knobs(*(case[name] for name in Knobs._fields))
        key = jax.random.fold_in(jax.random.key(case["seed"]), k)
        key, draw_key = jax.random.split(key)
        observed = load_reference(case["task"], k).x_observed
        (z, x, distance, _), took = anneal(task, knobs, key, observed)
        weight = jnp.full(len(z), 1.0 / len(z))
        if case["method"] == "annealing, linear":
            weight = epanechnikov(weight, distance)
            z = sj.abc.linear_adjustment()(z, x, observed, weight)
        z, _ = draw_weighted(draw_key, z, weight, case["num_draws"])
        took |= {"tolerance": jnp.max(distance), "mean_distance": jnp.mean(distance)}
        row = case | {name: float(f"{value:.3g}") for name, value in took.items()}
        row |= {"num_distinct": len(np.unique(distance))} | environment()
        found.append((to_matrix(jax.vmap(task().prior.from_vector)(z)), row))
    return found


def main() -> None:
    """Run what was asked for, keep it and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=METHODS)
    parser.add_argument("--knobs", nargs="+", type=float, required=True)
    parser.add_argument("--observations", nargs="+", type=int, default=[1])
    parser.add_argument("--num-draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    knobs = Knobs(*map(int, args.knobs[:2]), *args.knobs[2:])
    path, cases = RESULTS / "annealing_abc.jsonl", []
    for method in METHODS[args.task]:
        case = {"task": args.task, "method": method, "seed": args.seed}
        case |= {"num_draws": args.num_draws, **knobs._asdict()}
        for k in missing_observations(path, args.observations, **case):
            cases.append({**case, "observation": k})
    found, pairs = run_fresh(draw, cases), {}
    for i, (draws, row) in enumerate(found):
        reference = load_reference(args.task, row["observation"]).samples
        pairs[i] = (reference[: args.num_draws], draws)
    for i, c2st in score_draws(pairs, num_workers=2):
        append_row(path, found[i][1] | {"c2st": round(c2st, 4)})
        print(f"{c2st:.3f}", found[i][1], flush=True)


if __name__ == "__main__":
    main()
