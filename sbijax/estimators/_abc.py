"""Assembly of estimators that simulate until the data look like the observation."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.abc.adjustment import Adjustment, epanechnikov
from sbijax.abc.distances import Distance, as_distance, euclidean
from sbijax.abc.kernels import Kernel
from sbijax.abc.populations import (
    NOTHING,
    TOLERANCE,
    History,
    Particles,
    Problem,
    Schedule,
    run_populations,
)
from sbijax.abc.summaries import Summary, as_summary
from sbijax.base import (
    AbcInfo,
    Array,
    Estimator,
    Params,
    Prior,
    PyTree,
    Simulations,
    Stats,
)
from sbijax.checks import check_count, check_like, check_record
from sbijax.data import count_invalid, flatten
from sbijax.estimators._data import (
    count_invalid_theta,
    num_entries,
    num_outside,
    observed_range,
    split_example,
)
from sbijax.estimators._in_turn import in_turn
from sbijax.samplers.weights import draw_weighted

__all__ = ["abc_posterior"]


def abc_posterior(
    prior: Prior,
    simulator: Callable[[Array, PyTree], PyTree],
    schedule: Schedule,
    *,
    distance: Distance | Callable[[PyTree, PyTree], Array] | None,
    summary: Summary | Callable[[PyTree], PyTree] | None,
    kernel: Kernel,
    adjustment: Adjustment | None,
    max_distance: float | None = None,
) -> Estimator:
    """The estimator of one schedule; see `make_smc_abc` for the arguments.

    With a `max_distance` particles further away get no weight.
    """
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    if not callable(simulator):
        raise TypeError(
            "simulator must be a function (key, theta) -> x, got "
            f"{type(simulator).__name__}. The order is (prior, simulator)."
        )
    for value, name in ((kernel, "kernel"), (adjustment, "adjustment")):
        if value is not None and not callable(value):
            raise TypeError(
                f"{name} must be a function, such as those of sbijax.abc, got "
                f"{type(value).__name__}."
            )
    measure = as_distance(euclidean() if distance is None else distance)
    summarise = as_summary(summary)

    def init_fn(key: Array, sims: Simulations) -> Params:
        example, sims = split_example(sims)
        theta, x, weight = sims
        z = jax.vmap(prior.to_vector)(theta)
        fitted = summarise.fit(z, x, weight)
        rows = jax.vmap(partial(summarise.apply, fitted))(x)
        stats = Stats(
            example=example,
            theta={},
            x={
                "summary": fitted,
                "scale": measure.fit(rows, weight),
                "range": observed_range(x),
            },
            num_outside=count_invalid_theta(prior, sims),
        )
        return Params({}, stats)

    def problem_of(params: Params, x: PyTree) -> Problem:
        example, fitted = params.stats.example, params.stats.x["summary"]

        def simulate(key: Array, z: Array) -> PyTree:
            found = simulator(key, prior.from_vector(z))
            return summarise.apply(fitted, check_like(found, example.x, "a simulation"))

        return Problem(
            sample_prior=lambda key: prior.to_vector(prior.sample(key)),
            log_prior=lambda z: prior.log_prob(prior.from_vector(z)) + prior.log_det(z),
            simulate=simulate,
            observed=summarise.apply(fitted, x),
        )

    def adjust(particles: Particles, observed: PyTree) -> Particles:
        if adjustment is None:
            return particles
        weight = epanechnikov(particles.weight, particles.distance)
        z = adjustment(
            particles.z, jax.vmap(flatten)(particles.s), flatten(observed), weight
        )
        return particles._replace(z=z, weight=weight)

    def run(
        params: Params, key: Array, x: PyTree
    ) -> tuple[Particles, History, dict[str, Array]]:
        problem, scale = problem_of(params, x), params.stats.x["scale"]
        particles, history, counts = run_populations(
            key, problem, measure, scale, kernel, schedule
        )
        if max_distance is not None:
            particles, history = _cut(particles, history, max_distance)
            found = jnp.any(particles.weight > 0)
            counts["stop_reason"] = jnp.where(found, TOLERANCE, NOTHING)
        return adjust(particles, problem.observed), history, counts

    def sample_fn(
        params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, AbcInfo]:
        num_samples = check_count(num_samples, "num_samples")
        x = check_like(x, params.stats.example.x, "x")
        run_key, draw_key = jax.random.split(key)
        particles, history, counts = in_turn(run)(params, run_key, x)
        z, _ = draw_weighted(draw_key, particles.z, particles.weight, num_samples)
        z = jnp.where(jnp.any(particles.weight > 0), z, jnp.nan)
        info = AbcInfo(
            num_invalid=count_invalid(z),
            num_outside=num_outside(x, params.stats.x["range"]),
            num_entries=num_entries(x),
            tolerance=history.tolerance,
            acceptance=history.acceptance,
            population_ess=history.ess,
            theta=jax.vmap(prior.from_vector)(particles.z),
            weight=particles.weight,
            distance=particles.distance,
            **counts,
        )
        return jax.vmap(prior.from_vector)(z), info

    return Estimator(init=init_fn, loss=None, log_prob=None, sample=sample_fn)


def _cut(
    particles: Particles, history: History, max_distance: float
) -> tuple[Particles, History]:
    """Take the weight of particles further away than a fixed distance."""
    inside = particles.distance <= max_distance
    weight = jnp.where(inside, particles.weight, 0.0)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1.0)
    ess = jnp.where(total > 0, 1.0 / jnp.sum(weight**2), 0.0)
    history = History(
        tolerance=jnp.full_like(history.tolerance, max_distance),
        acceptance=jnp.full_like(history.acceptance, jnp.mean(inside)),
        ess=jnp.full_like(history.ess, ess),
    )
    return particles._replace(weight=weight), history
