"""C2ST of a default method against sbibm's reference posteriors.

    python -m benchmarks.accuracy nle --tasks two_moons slcp --seeds 0 1 2

For each task and seed: simulate, train `sj.make_nle(prior)` (or another method)
with its defaults in a fresh process (so that the seconds include
compilation), draw 10,000 times for each of the 10 observations, and score the
draws with sbibm's classifier.  0.5 is a perfect score.  Each (task, observation,
seed) is a line of `results/nle_accuracy.jsonl`; lines that are there are not run
again.  `npe_online` draws fresh simulations as it learns, 100,000 an epoch, whatever
the budget.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import (
    RESULTS,
    append_row,
    environment,
    format_sd,
    means_by,
    missing_observations,
    read_rows,
    run_fresh,
    score_draws,
    spread,
    to_matrix,
)
from benchmarks.reference import NUM_OBSERVATIONS, load_reference

__all__ = ["main", "print_table", "train_and_draw"]

TASKS = ("two_moons", "slcp", "gaussian_linear", "gaussian_mixture")
METHODS: dict[str, Callable[[sj.Prior], Any]] = {
    "npe": sj.make_npe,
    "nle": sj.make_nle,
    "nre": sj.make_nre,
    "fmpe": sj.make_fmpe,
    "npse": sj.make_npse,
    "npe_ensemble": lambda prior: sj.ensemble(sj.make_npe(prior)),
    "npse_ensemble": lambda prior: sj.ensemble(sj.make_npse(prior)),
    "npe_online": sj.make_npe,
}

DIFFUSION_GOALS: dict[str, tuple[float | None, float | None]] = {
    "two_moons": (0.54, 0.515),
    "slcp": (0.82, 0.70),
    "gaussian_linear": (0.54, 0.52),
    "gaussian_mixture": (0.58, 0.53),
}

ENSEMBLE_GOALS: dict[str, tuple[float | None, float | None]] = {
    "two_moons": (0.53, 0.51),
    "slcp": (0.78, 0.68),
    "gaussian_linear": (None, None),
    "gaussian_mixture": (None, None),
}

GOALS: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "npe": {  # at least, better
        "two_moons": (0.55, 0.52),
        "slcp": (0.85, 0.78),
        "gaussian_linear": (0.55, 0.53),
        "gaussian_mixture": (0.60, 0.54),
    },
    "nle": {
        "two_moons": (0.57, 0.53),
        "slcp": (0.74, 0.68),
        "gaussian_linear": (0.56, None),
        "gaussian_mixture": (0.65, 0.56),
    },
    "nre": {
        "two_moons": (0.60, 0.54),
        "slcp": (0.90, 0.80),
        "gaussian_linear": (0.56, None),
        "gaussian_mixture": (None, None),
    },
    "fmpe": DIFFUSION_GOALS,
    "npse": DIFFUSION_GOALS,
    "npe_ensemble": ENSEMBLE_GOALS,
    "npse_ensemble": ENSEMBLE_GOALS,
    "npe_online": {
        "two_moons": (0.52, None),
        "slcp": (None, None),
        "gaussian_linear": (None, None),
        "gaussian_mixture": (None, None),
    },
}


def train_and_draw(
    method: str, task_name: str, seed: int, num_simulations: int
) -> tuple[np.ndarray, list[dict[str, float]], dict[str, Any]]:
    """Simulate, train with the defaults and draw for all observations of a task.

    Args:
        method: one of `METHODS`.
        task_name: one of `TASKS`.
        seed: seed of everything.
        num_simulations: training budget, validation rows included.

    Returns:
        Draws `[10, 10000, D]`, R-hat and ESS of each observation where there are
        chains, and what the training took.
    """
    task = getattr(sj.simulators, task_name)()
    key_sims, key_train, key_draws = jax.random.split(jax.random.key(seed), 3)
    sims = sj.simulate(
        key_sims, task.prior, task.simulator, num_simulations, progress=False
    )
    jax.block_until_ready(sims)
    estimator = METHODS[method](task.prior)
    start, start_cpu = time.perf_counter(), time.process_time()
    if method == "npe_online":
        params, info = sj.train_online(
            key_train, estimator, task.prior, task.simulator, progress=False
        )
    else:
        params, info = sj.train(key_train, estimator, sims, progress=False)
    jax.block_until_ready(params)
    trained, trained_cpu = time.perf_counter(), time.process_time()
    xs = np.stack(
        [load_reference(task_name, k + 1).x_observed for k in range(NUM_OBSERVATIONS)]
    )
    keys = jax.random.split(key_draws, len(xs))
    sample = jax.jit(lambda k, x: estimator.sample(params, k, x, num_samples=10_000))
    drawn = [sample(k, x) for k, x in zip(keys, xs, strict=True)]
    samples = np.stack([to_matrix(theta) for theta, _ in drawn])
    chains = [_describe_chains(info) for _, info in drawn]
    summary = {
        "num_simulations": num_simulations,
        "train_seconds": round(trained - start, 2),
        "train_cpu_seconds": round(trained_cpu - start_cpu, 2),
        "sample_seconds": round(time.perf_counter() - trained, 2),
        "num_epochs": int(info.num_epochs),
        "best_val_loss": round(float(info.best_loss), 4),
        **environment(),
    }
    return samples, chains, summary


def _describe_chains(info: Any) -> dict[str, float]:
    if not isinstance(info, sj.ChainInfo):
        return {}
    return {
        "max_rhat": round(float(info.rhat.max()), 3),
        "min_ess": round(float(info.ess.min())),
    }


def run_one(
    method: str,
    task_name: str,
    seed: int,
    observations: Iterable[int],
    num_simulations: int,
    num_workers: int,
) -> Iterator[dict[str, Any]]:
    """Yield one row per observation, in the order in which they are scored."""
    samples, chains, summary = run_fresh(
        train_and_draw, method, task_name, seed, num_simulations
    )
    pairs = {
        k: (load_reference(task_name, k).samples, samples[k - 1]) for k in observations
    }
    for k, c2st in score_draws(pairs, num_workers):
        row = {"task": task_name, "observation": k, "seed": seed}
        yield {**row, "c2st": round(c2st, 4), **chains[k - 1], **summary}


def print_table(method: str, rows: list[dict[str, Any]]) -> None:
    """Print the mean per task and its spread over observations and over seeds."""
    print(f"{method}: C2ST, 0.5 is perfect; sd of the observations' and seeds' means")
    print(
        f"{'task':17s} {'seeds':>5s} {'mean':>6s} {'sd obs':>7s} {'sd seeds':>9s} "
        f"{'worst':>6s} {'goal':>5s} {'better':>7s}  train seconds"
    )
    for task_name in TASKS:
        mine = [row for row in rows if row["task"] == task_name]
        if not mine:
            continue
        by_seed, by_observation = means_by(mine, "seed"), means_by(mine, "observation")
        goal, better = GOALS[method][task_name]
        missing = len(by_seed) * NUM_OBSERVATIONS - len(mine)
        print(
            f"{task_name:17s} {len(by_seed):5d} {np.mean(by_seed):6.3f} "
            f"{format_sd(by_observation):>7s} {format_sd(by_seed):>9s} "
            f"{max(row['c2st'] for row in mine):6.3f} "
            f"{goal or '-':>5} {better or '-':>7}  "
            + spread({row["train_seconds"] for row in mine})
            + (f"  ({missing} rows missing)" if missing else "")
        )


def main() -> None:
    """Run what is missing in the results file, then print the table."""
    args = _parse()
    results = args.results or RESULTS / f"{args.method}_accuracy.jsonl"
    for task_name in args.tasks:
        for seed in args.seeds:
            missing = missing_observations(
                results, args.observations, task=task_name, seed=seed
            )
            if not missing:
                continue
            print(f"{task_name}, seed {seed}: training, then {len(missing)} C2ST")
            for row in run_one(
                args.method,
                task_name,
                seed,
                missing,
                args.num_simulations,
                args.num_workers,
            ):
                append_row(results, row)
                print(f"  observation {row['observation']:2d}: {row['c2st']:.3f}")
    print_table(args.method, read_rows(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--observations", nargs="+", type=int, default=range(1, NUM_OBSERVATIONS + 1)
    )
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
