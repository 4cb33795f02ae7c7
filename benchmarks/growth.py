"""What NPE costs as simulations, dimensions, observations and members grow.

    python -m benchmarks.growth --axes num_simulations num_members

The task is linear: x = A theta + noise, with as many parameters and data as asked
for, so that only the size changes.  Along each axis everything else stays at
`Size()`.  Training is timed as seconds of an epoch of the default NPE, compilation
apart; inference as 1,000 draws for each of the observations in one compiled call,
100 observations at a time.
Memory is the largest that the device had in use, or of a CPU the process; so each
axis has a process of its own, and its sizes come in increasing order.

The slope is that of a line through the last three points in log-log scale: 1 is
linear.  `--axes roofline` compares a training step with the fastest product of two
matrices on the same machine, by the operations that XLA counts in the step.

Each (device, axis, value, seed) is a line of `results/growth.jsonl`; lines that are
there are not run again.
"""

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, read_rows, run_fresh
from benchmarks.speed import count_compilations, time_call
from sbijax.base import Array, Estimator, Params, Simulations
from sbijax.training.fit import TrainConfig, init_state, run_epochs

__all__ = ["AXES", "Size", "main", "measure_inference", "measure_step", "slope"]


class Size(NamedTuple):
    """What may grow."""

    num_simulations: int = 10_000
    theta_dim: int = 5
    x_dim: int = 10
    num_observations: int = 1_000
    num_members: int = 1


AXES: dict[str, tuple[int, ...]] = {
    "num_simulations": (1_000, 10_000, 100_000, 1_000_000),
    "theta_dim": (2, 5, 10, 20, 50),
    "x_dim": (2, 10, 100, 1_000),
    "num_observations": (1, 10, 100, 1_000, 10_000),
    "num_members": (1, 2, 4, 8, 16, 32),
    "roofline": (50, 500, 5_000, 50_000),  # rows of a step
}
_NUM_DRAWS = 1_000
_AT_A_TIME = 100  # observations; memory does not grow beyond them
_SECONDS = 2.0  # about what one timing takes
_MATMUL_SIZES = (1_024, 2_048, 4_096)


def make_problem(size: Size, key: Array) -> tuple[Estimator, Simulations]:
    """The default NPE and simulations of a linear task."""
    matrix_key, theta_key, noise_key = jax.random.split(key, 3)
    shape = size.x_dim, size.theta_dim
    matrix = jax.random.normal(matrix_key, shape) / np.sqrt(size.theta_dim)
    theta = jax.random.normal(theta_key, (size.num_simulations, size.theta_dim))
    noise = jax.random.normal(noise_key, (size.num_simulations, size.x_dim))
    sims = sj.make_simulations(theta, theta @ matrix.T + 0.5 * noise)
    prior = sj.make_prior(dist.Normal(jnp.zeros(size.theta_dim), 1.0).to_event(1))
    npe = sj.make_npe(prior)
    if size.num_members > 1:
        npe = sj.ensemble(npe, num_members=size.num_members)
    return npe, jax.block_until_ready(sims)


def measure_training(size: Size, seed: int) -> dict[str, float]:
    """Seconds of an epoch, and of compilation with the first one."""
    problem_key, train_key = jax.random.split(jax.random.key(seed))
    npe, sims = make_problem(size, problem_key)
    config = TrainConfig(patience=1_000)
    count = count_compilations()
    start = time.perf_counter()
    state = init_state(train_key, sims, 5e-3, 0.2, estimator=npe, config=config)
    advance = partial(run_epochs, sims=sims, estimator=npe, config=config)
    state = jax.block_until_ready(advance(state, until_epoch=1))
    first = time.perf_counter() - start
    num_compiled = count()
    start = time.perf_counter()
    state = jax.block_until_ready(advance(state, until_epoch=2))
    num_epochs = max(1, min(200, int(_SECONDS / (time.perf_counter() - start))))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        until = int(state.epoch) + num_epochs
        state = jax.block_until_ready(advance(state, until_epoch=until))
        seconds.append((time.perf_counter() - start) / num_epochs)
    assert int(state.epoch) == 2 + 3 * num_epochs
    return {
        "seconds": float(np.median(seconds)),
        "first_seconds": first,
        "num_retraces": count() - num_compiled,
    }


def measure_inference(size: Size, seed: int) -> dict[str, float]:
    """Seconds of 1,000 draws for each of the observations, in one call."""
    problem_key, init_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    npe, sims = make_problem(size, problem_key)
    params = npe.init(init_key, sims)

    @jax.jit
    def draw(keys: Array, xs: Array) -> Any:
        def one(key_and_x: tuple[Array, Array]) -> Any:
            return npe.sample(params, *key_and_x, num_samples=_NUM_DRAWS)[0]

        return jax.lax.map(one, (keys, xs), batch_size=min(len(xs), _AT_A_TIME))

    keys = jax.random.split(draw_key, size.num_observations)
    xs = sims.x[: size.num_observations]
    timed = time_call(lambda: draw(keys, xs), 2)
    return {
        "seconds": float(np.median(timed["seconds"])),
        "first_seconds": timed["first"],
    }


def measure_step(batch_size: int, seed: int) -> dict[str, float]:
    """Operations a second of a gradient of the loss, and of the fastest product."""
    problem_key, init_key, loss_key = jax.random.split(jax.random.key(seed), 3)
    npe, sims = make_problem(Size(num_simulations=batch_size), problem_key)
    params = npe.init(init_key, sims)
    assert npe.loss is not None
    loss = npe.loss

    def step(net: Any) -> Any:
        return jax.grad(lambda net: loss(Params(net, params.stats), loss_key, sims))(
            net
        )

    compiled = jax.jit(step).lower(params.net).compile()
    cost = compiled.cost_analysis()
    timed = time_call(lambda: compiled(params.net), 20)
    seconds = float(np.median(timed["seconds"]))
    return {
        "seconds": seconds,
        "step_flops": cost["flops"] / seconds,
        "matmul_flops": max(_time_product(n) for n in _MATMUL_SIZES),
    }


def _time_product(size: int) -> float:
    """Operations a second of a product of two matrices."""
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    timed = time_call(lambda: product(left, right), 10)
    return 2 * size**3 / float(np.median(timed["seconds"]))


def measure_axis(axis: str, values: list[int], seed: int) -> Iterator[dict[str, Any]]:
    """A row for each size, in the order given."""
    for value in values:
        if axis == "roofline":
            result = measure_step(value, seed)
        elif axis == "num_observations":
            largest = Size(num_simulations=max(10_000, value), num_observations=value)
            result = measure_inference(largest, seed)
        else:
            result = measure_training(Size()._replace(**{axis: value}), seed)
        yield (
            {"axis": axis, "value": value, "seed": seed}
            | result
            | {
                "peak_bytes": peak_bytes(),
                **environment(),
            }
        )


def peak_bytes() -> int:
    """The most that the device had in use so far, or of a CPU the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def slope(values: list[int], seconds: list[float]) -> float:
    """Slope of a line through the last three points, both in logarithms.

    Example:
        >>> round(slope([1, 10, 100, 1_000], [5.0, 1.0, 10.0, 100.0]), 3)
        1.0
    """
    return float(np.polyfit(np.log(values[-3:]), np.log(seconds[-3:]), 1)[0])


def _run_axis(axis: str, values: list[int], seed: int, path: Path) -> None:
    """Measure in this process; rows are written as they come."""
    warnings.simplefilter("ignore", sj.SbijaxWarning)
    for row in measure_axis(axis, values, seed):
        append_row(path, row)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print seconds, memory and slope of every axis on every device."""
    for device, axis in sorted({(row["device"], row["axis"]) for row in rows}):
        mine = [r for r in rows if (r["device"], r["axis"]) == (device, axis)]
        values = sorted({row["value"] for row in mine})
        at = {v: [row for row in mine if row["value"] == v] for v in values}
        print(f"{device}, {axis}")
        if axis == "roofline":
            for value in values:
                step = np.median([row["step_flops"] for row in at[value]])
                product = np.median([row["matmul_flops"] for row in at[value]])
                print(
                    f"  {value:9,d} rows  {step / 1e9:10.1f} GFLOP/s, "
                    f"{100 * step / product:5.2f} % of a product's"
                )
            continue
        seconds = [float(np.median([r["seconds"] for r in at[v]])) for v in values]
        for value, second in zip(values, seconds, strict=True):
            first = np.median([row["first_seconds"] for row in at[value]])
            peak = max(row["peak_bytes"] for row in at[value])
            print(
                f"  {value:9,d}  {second:9.4f} s  first {first:6.1f} s"
                f"  {peak / 2**20:8,.0f} MiB"
            )
        if len(values) > 2:
            print(f"  slope {slope(values, seconds):.2f}")


def main() -> None:
    """Measure what is missing in the results file, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "growth.jsonl")
    args = parser.parse_args()
    device = run_fresh(environment)["device"]
    for axis in args.axes:
        for seed in args.seeds:
            case = {"axis": axis, "seed": seed, "device": device}
            done = {
                row["value"]
                for row in read_rows(args.results)
                if all(row[name] == value for name, value in case.items())
            }
            missing = [value for value in AXES[axis] if value not in done]
            if missing:
                print(f"{axis}, seed {seed}: {missing}")
                run_fresh(_run_axis, axis, missing, seed, args.results)
    print_table(read_rows(args.results))


if __name__ == "__main__":
    main()
