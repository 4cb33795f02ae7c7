"""C2ST against exact posteriors of images, series, sets, several inputs, missing data.

    python -m benchmarks.embeddings --tasks image series --seeds 0 1
    python -m benchmarks.embeddings --embedding default

For each task of `benchmarks.embedding_tasks` and each seed: simulate 20,000 times,
train in a fresh process (so that the seconds include compilation), draw 10,000 times
for each of 10 observations, which are the same for all seeds, and score the draws
against as many from the exact posterior with sbibm's classifier.  0.5 is a perfect
score.  500 further simulations are ranked for simulation-based calibration; its p
value is the smallest over the parameters and log q, adjusted for their number.

With `--embedding default` network and standardizer are those that `make_npe(prior)`
has for arrays, a residual perceptron on all numbers of x.  Each (task, method,
embedding, observation, seed) is a line of `results/embeddings.jsonl`; lines that are
there are not run again.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
from benchmarks.embedding_tasks import TASKS, Task
from sbijax import networks
from sbijax.base import Array, PyTree

__all__ = ["Budget", "Case", "main", "print_table", "run_one", "train_and_draw"]

METHODS: dict[str, Callable[..., Any]] = {
    "npe": sj.make_npe,
    "fmpe": sj.make_fmpe,
    "npse": sj.make_npse,
}
EMBEDDINGS = ("task", "default")
NUM_OBSERVATIONS = 10
GOAL = 0.60
OBSERVATION_SEED = 2**31  # out of reach of the seeds of trainings


class Case(NamedTuple):
    """What a row of results is about, besides the observation."""

    task: str
    method: str
    embedding: str
    seed: int


class Budget(NamedTuple):
    """How much of everything."""

    num_simulations: int = 20_000
    num_draws: int = 10_000
    num_replicates: int = 500


def make_estimator(task: Task, method: str, embedding: str) -> Any:
    """The method with the parts of the task, or with the defaults for arrays."""
    network, standardizer = task.embedding, task.standardizer
    if embedding == "default":
        network = networks.resnet(
            32, hidden_size=128, num_blocks=3, activation=jax.nn.relu
        )
        standardizer = networks.robust()
    return task.adapt(
        METHODS[method](task.prior, embedding=network, standardizer=standardizer)
    )


def observe(task: Task, number: int) -> PyTree:
    """Observation 1, 2, ... of a task, a draw from the prior predictive."""
    key = jax.random.fold_in(jax.random.key(OBSERVATION_SEED), number)
    prior_key, simulator_key, observe_key = jax.random.split(key, 3)
    theta = task.prior.sample(prior_key)
    return task.observe(observe_key, task.simulator(simulator_key, theta))


def train_and_draw(
    case: Case, observations: Iterable[int], budget: Budget
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], dict[int, float], dict[str, Any]]:
    """Simulate, train, and draw from the exact and the learned posterior.

    Returns:
        Exact and learned draws `[S, D]`, and the effective sample size behind the
        exact ones, of each observation; and what the training took.
    """
    task = TASKS[case.task]()
    sims_key, train_key, draw_key, exact_key, sbc_key = jax.random.split(
        jax.random.key(case.seed), 5
    )
    sims = sj.simulate(
        sims_key, task.prior, task.simulator, budget.num_simulations, progress=False
    )
    jax.block_until_ready(sims)
    estimator = make_estimator(task, case.method, case.embedding)
    start, start_cpu = time.perf_counter(), time.process_time()
    params, info = jax.block_until_ready(
        sj.train(train_key, estimator, sims, progress=False)
    )
    summary = {
        "num_simulations": budget.num_simulations,
        "train_seconds": round(time.perf_counter() - start, 2),
        "train_cpu_seconds": round(time.process_time() - start_cpu, 2),
        "num_epochs": int(info.num_epochs),
        "best_val_loss": round(float(info.best_loss), 4),
        "sbc_p_value": check_calibration(
            sbc_key, task, estimator, params, budget.num_replicates
        ),
        **environment(),
    }
    num_draws = budget.num_draws
    draw = jax.jit(lambda k, x: estimator.sample(params, k, x, num_samples=num_draws))
    pairs, sizes = {}, {}
    for k in observations:
        x = observe(task, k)
        exact, ess = task.sample_exact(
            jax.random.fold_in(exact_key, k), x, num_samples=num_draws
        )
        learned, _ = draw(jax.random.fold_in(draw_key, k), x)
        pairs[k] = to_matrix(exact), to_matrix(learned)
        sizes[k] = float(ess)
    return pairs, sizes, summary


def check_calibration(
    key: Array, task: Task, estimator: Any, params: PyTree, num_replicates: int
) -> float:
    """P-value of simulation-based calibration on fresh simulations."""
    sims_key, observe_key, rank_key = jax.random.split(key, 3)
    sims = sj.simulate(
        sims_key, task.prior, task.simulator, num_replicates, progress=False
    )
    keys = jax.random.split(observe_key, num_replicates)
    sims = sims._replace(x=jax.vmap(task.observe)(keys, sims.x))
    if isinstance(estimator, sj.DiffusionEstimator):  # its density is costly
        estimator = estimator._replace(log_prob=None)
    result = sj.diagnostics.sbc(rank_key, estimator, params, sims)
    return round(result.global_p_value, 4)


def run_one(
    case: Case, observations: Iterable[int], budget: Budget, num_workers: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per observation, in the order in which they are scored."""
    pairs, sizes, summary = run_fresh(train_and_draw, case, list(observations), budget)
    for k, c2st in score_draws(pairs, num_workers):
        row = {**case._asdict(), "observation": k, "c2st": round(c2st, 4)}
        ess = round(sizes[k]) if np.isfinite(sizes[k]) else None
        yield {**row, "exact_ess": ess, **summary}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the mean of each task, method and embedding, and its spread."""
    print(f"C2ST, 0.5 is perfect, goal {GOAL}; calibration p of each seed")
    print(
        f"{'task':8s} {'method':6s} {'embedding':9s} {'seeds':>5s} {'mean':>6s} "
        f"{'sd obs':>6s} {'sd seeds':>8s} {'worst':>6s}  {'calibration p':16s} "
        "train seconds"
    )
    for name in sorted({case_of(row)[:3] for row in rows}):
        mine = [row for row in rows if case_of(row)[:3] == name]
        seeds = sorted({row["seed"] for row in mine})
        by_seed, by_observation = means_by(mine, "seed"), means_by(mine, "observation")
        p_values = [
            next(row["sbc_p_value"] for row in mine if row["seed"] == seed)
            for seed in seeds
        ]
        missing = len(seeds) * NUM_OBSERVATIONS - len(mine)
        print(
            f"{name[0]:8s} {name[1]:6s} {name[2]:9s} {len(seeds):5d} "
            f"{np.mean(by_seed):6.3f} {format_sd(by_observation):>6s} "
            f"{format_sd(by_seed):>8s} {max(row['c2st'] for row in mine):6.3f}  "
            f"{', '.join(f'{p:.3g}' for p in p_values):16s} "
            + spread({row["train_seconds"] for row in mine})
            + (f"  ({missing} rows missing)" if missing else "")
        )


def case_of(row: dict[str, Any]) -> Case:
    """The case of a row of results."""
    return Case(*(row[field] for field in Case._fields))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What is asked for, without comparisons of a default with itself."""
    for task_name in args.tasks:
        if args.embedding == "default" and TASKS[task_name]().embedding is None:
            print(f"{task_name}: left out, its embedding is the default")
            continue
        for seed in args.seeds:
            yield Case(task_name, args.method, args.embedding, seed)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the results file, then print the table."""
    args = _parse(arguments)
    budget = Budget(args.num_simulations, args.num_draws, args.num_replicates)
    for case in cases(args):
        missing = missing_observations(
            args.results, args.observations, **case._asdict()
        )
        if not missing:
            continue
        print(f"{', '.join(map(str, case))}: training, then {len(missing)} C2ST")
        for row in run_one(case, missing, budget, args.num_workers):
            append_row(args.results, row)
            print(f"  observation {row['observation']:2d}: {row['c2st']:.3f}")
    print_table(read_rows(args.results))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", choices=METHODS, default="npe")
    parser.add_argument("--embedding", choices=EMBEDDINGS, default="task")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--observations", nargs="+", type=int, default=range(1, NUM_OBSERVATIONS + 1)
    )
    parser.add_argument("--num-simulations", type=int, default=Budget().num_simulations)
    parser.add_argument("--num-draws", type=int, default=Budget().num_draws)
    parser.add_argument("--num-replicates", type=int, default=Budget().num_replicates)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "embeddings.jsonl")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
