"""Which sampler should be the default: C2ST and seconds on exact likelihoods.

    python -m benchmarks.samplers --seeds 0

On two_moons, gaussian_mixture, slcp and lotka_volterra, observations 1 and 2 of
the reference set, every sampler draws 4,000 times from the exact posterior with
its defaults.  The draws are scored against 4,000 of the reference, so that only
the sampler can be at fault; with so few, a classifier that guesses is .005 off.
Seconds are those of a call that is compiled already.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import (
    RESULTS,
    append_row,
    environment,
    missing_observations,
    read_rows,
)
from benchmarks.reference import load_reference
from sbijax import samplers
from sbijax.estimators._unnormalised import make_target

__all__ = ["main"]

TASKS = ("two_moons", "gaussian_mixture", "slcp", "lotka_volterra")
SAMPLERS = {
    "tempered_smc": samplers.tempered_smc(),
    "nuts": samplers.nuts(),
    "mala": samplers.mala(),
    "slice_sampling": samplers.slice_sampling(),
    "nested_sampling": samplers.nested_sampling(),
    "pathfinder": samplers.pathfinder(),
    "importance_resampling": samplers.importance_resampling(num_candidates=100_000),
}
NUM_DRAWS = 4_000


def measure(
    task_name: str, name: str, seed: int, observations: list[int]
) -> list[dict[str, Any]]:
    """One row per observation."""
    task = getattr(sj.simulators, task_name)()

    def draw(key: jax.Array, x: jax.Array) -> tuple[Any, sj.ChainInfo]:
        target = make_target(task.prior, lambda theta, _: task.log_likelihood(theta, x))
        chains, info = SAMPLERS[name](key, target, num_samples=NUM_DRAWS)
        z = chains.reshape(-1, task.prior.num_dims)[:NUM_DRAWS]
        return jax.vmap(task.prior.from_vector)(z), info

    references = [load_reference(task_name, k) for k in observations]
    key = jax.random.key(seed)
    start = time.perf_counter()
    run = jax.jit(draw).lower(key, references[0].x_observed).compile()
    compile_seconds = time.perf_counter() - start
    rows = []
    for k, reference in zip(observations, references, strict=True):
        start = time.perf_counter()
        theta, info = jax.block_until_ready(run(key, reference.x_observed))
        seconds = time.perf_counter() - start
        score = sj.diagnostics.c2st(reference.samples[:NUM_DRAWS], np.asarray(theta))
        rows.append(
            {
                "task": task_name,
                "sampler": name,
                "seed": seed,
                "observation": k,
                "c2st": round(float(score), 4),
                "seconds": round(seconds, 4),
                "compile_seconds": round(compile_seconds, 2),
                "min_ess": round(float(info.ess.min())),
                "max_rhat": round(float(info.rhat.max()), 3),
                **environment(),
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print means over observations and seeds: C2ST, and seconds below it."""
    print(f"{'':22s} {'':8s} " + " ".join(f"{name:>16s}" for name in TASKS))
    for name in SAMPLERS:
        for field, label in (("c2st", "C2ST"), ("seconds", "seconds")):
            cells = []
            for task_name in TASKS:
                mine = [
                    row[field]
                    for row in rows
                    if (row["task"], row["sampler"]) == (task_name, name)
                ]
                cells.append(f"{np.mean(mine):16.3g}" if mine else f"{'-':>16s}")
            title = name if field == "c2st" else ""
            print(f"{title:22s} {label:8s} " + " ".join(cells))


def main() -> None:
    """Run what is missing in the results file, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS / "samplers.jsonl")
    args = parser.parse_args()
    for task_name in args.tasks:
        for name in args.samplers:
            for seed in args.seeds:
                missing = missing_observations(
                    args.results,
                    args.observations,
                    task=task_name,
                    sampler=name,
                    seed=seed,
                )
                for row in measure(task_name, name, seed, missing) if missing else []:
                    append_row(args.results, row)
                    print(
                        f"{task_name}, {name}, observation {row['observation']}: C2ST "
                        f"{row['c2st']:.3f} in {row['seconds']:.3g} s",
                        flush=True,
                    )
    print_table(read_rows(args.results))


if __name__ == "__main__":
    main()
