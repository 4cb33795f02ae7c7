"""C2ST of the default methods on sbibm's tasks, for every number of simulations.

    python -m benchmarks.sbibm --tasks slcp sir --methods npe nle --budgets 1000 10000
    python -m benchmarks.sbibm_table

For each task, method, budget and seed: simulate, train in a fresh process, draw
10,000 times for each of the 10 observations, and score the draws with sbibm's
classifier, compiled or (`--classifier sklearn`) from scikit-learn, which takes 5 to 20
times as long.  0.5 is a perfect score.  The budget counts every simulation, those for
validation and for pilots too.  All methods have their defaults everywhere.

Each (task, method, budget, seed, classifier, observation) is a line of
`results/sbibm.jsonl`; lines that are there are not run again.  Seconds of training and
of drawing (for all 10 observations) leave out compilation, which stands beside them.

`val_score` is the mean of `log_score` over 200 rows of the validation set: by it the
best method of a task is chosen without a look at the reference.

`npe_online` validates on the budget and draws fresh simulations as it learns, 100,000
an epoch: it is no entry in a table of budgets.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import (
    CLASSIFIERS,
    RESULTS,
    append_row,
    commit,
    compile_clock,
    environment,
    missing_observations,
    read_rows,
    run_fresh,
    score_draws,
    to_matrix,
)
from benchmarks.reference import NUM_OBSERVATIONS, TASKS, Reference, load_reference
from benchmarks.sbibm_table import print_table
from sbijax.simulators import Task
from sbijax.training.fit import TrainConfig, init_state
from sbijax.training.steps import default_weight_decay

__all__ = ["BUDGETS", "METHODS", "Case", "main", "run_case", "train_and_draw"]

NUM_PILOTS = 1_000  # that scale the distance of ABC
NUM_SCORED = 200  # rows of the validation set
BUDGETS = (1_000, 10_000, 100_000)


def _make_smc_abc(task: Task, budget: int) -> Any:
    num_simulations = budget - _num_pilots(budget)
    return sj.make_smc_abc(task.prior, task.simulator, num_simulations=num_simulations)


def _num_pilots(budget: int) -> int:
    return min(NUM_PILOTS, budget // 10)


METHODS: dict[str, Callable[[Task, int], Any]] = {
    "npe": lambda task, _: sj.make_npe(task.prior),
    "npse": lambda task, _: sj.make_npse(task.prior),
    "fmpe": lambda task, _: sj.make_fmpe(task.prior),
    "nle": lambda task, _: sj.make_nle(task.prior, num_categories=task.num_categories),
    "nre": lambda task, _: sj.make_nre(task.prior),
    "npe_ensemble": lambda task, _: sj.ensemble(sj.make_npe(task.prior)),
    "npse_ensemble": lambda task, _: sj.ensemble(sj.make_npse(task.prior)),
    "smc_abc": _make_smc_abc,
    "npe_online": lambda task, _: sj.make_npe(task.prior),
}
DEFAULT_METHODS = ("npe", "npse", "nle", "nre", "smc_abc")


class Case(NamedTuple):
    """What a row of results is about, besides the observation."""

    task: str
    method: str
    budget: int
    seed: int


def train_and_draw(
    case: Case, xs: np.ndarray, num_draws: int
) -> tuple[np.ndarray, list[dict[str, float]], dict[str, Any]]:
    """Simulate, train with the defaults and draw for all observations.

    Args:
        case: task, method, budget and seed.
        xs: observations `[K, Dx]`.
        num_draws: draws `S` for each.

    Returns:
        Draws `[K, S, D]`, R-hat and ESS of each observation where there are chains,
        and what all of it took.
    """
    task = getattr(sj.simulators, case.task)()
    root = jax.random.key(case.seed)
    key_sims, key_train, key_draws, key_score = jax.random.split(root, 4)
    estimator = METHODS[case.method](task, case.budget)
    size = case.budget if estimator.loss else _num_pilots(case.budget)
    sims = sj.simulate(key_sims, task.prior, task.simulator, size, progress=False)
    jax.block_until_ready(sims)

    watch = Stopwatch()
    params, summary = learn(key_train, case.method, estimator, task, sims)
    train = watch.lap()
    keys = jax.random.split(key_draws, len(xs))
    sample = jax.jit(lambda k, x: estimator.sample(params, k, x, num_samples=num_draws))
    drawn = jax.block_until_ready([sample(k, x) for k, x in zip(keys, xs, strict=True)])
    draw = watch.lap()
    took = {
        "num_simulations": case.budget,
        "compile_seconds": round(train.compiling + draw.compiling, 2),
        "train_seconds": round(train.running, 2),
        "train_cpu_seconds": round(train.cpu, 2),
        "sample_seconds": round(draw.running, 2),
        **summary,
        **score_method(key_score, key_train, case.method, estimator, params, sims),
        **environment(),
        "commit": commit(),
    }
    draws = np.stack([to_matrix(theta) for theta, _ in drawn])
    return draws, [_describe_chains(info) for _, info in drawn], took


class Lap(NamedTuple):
    """Seconds of compilation, the other wall seconds, and all CPU seconds."""

    compiling: float
    running: float
    cpu: float


class Stopwatch:
    """Tells the seconds of compilation from the others."""

    def __init__(self) -> None:
        self._compiled = compile_clock()
        self._last = self._read()

    def _read(self) -> tuple[float, float, float]:
        return self._compiled(), time.perf_counter(), time.process_time()

    def lap(self) -> Lap:
        """What passed since the last lap."""
        now = self._read()
        compiling, wall, cpu = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        return Lap(compiling, wall - compiling, cpu)


def learn(
    key: jax.Array, method: str, estimator: Any, task: Task, sims: sj.Simulations
) -> tuple[sj.Params, dict[str, Any]]:
    """Parameters, and how the training went where there was one."""
    if estimator.loss is None:
        return jax.block_until_ready(estimator.init(key, sims)), {}
    if method == "npe_online":
        params, info = sj.train_online(
            key, estimator, task.prior, task.simulator, progress=False
        )
    else:
        params, info = sj.train(key, estimator, sims, progress=False)
    return jax.block_until_ready(params), {
        "num_epochs": int(info.num_epochs),
        "best_val_loss": round(float(info.best_loss), 4),
    }


def score_method(
    key: jax.Array,
    key_train: jax.Array,
    method: str,
    estimator: Any,
    params: sj.Params,
    sims: sj.Simulations,
) -> dict[str, float]:
    """Mean of log p(theta | x) over validation rows, of the key trained with."""
    if estimator.loss is None or method == "npe_online":
        return {}
    decay = default_weight_decay(len(sims.weight))
    options = {"estimator": estimator, "config": TrainConfig()}
    again = jax.random.clone(key_train)  # for the same split
    state = init_state(again, sims, 5e-3, decay, **options)
    rows = np.asarray(state.rows)[int(state.num_train) : int(state.num_valid)]
    held_out = jax.tree.map(lambda leaf: leaf[rows[:NUM_SCORED]], sims)
    scores = sj.diagnostics.log_score(key, estimator, params, held_out)
    return {"val_score": round(float(scores.mean()), 4)}


def _describe_chains(info: Any) -> dict[str, float]:
    if not isinstance(info, sj.ChainInfo):
        return {}
    return {
        "max_rhat": round(float(info.rhat.max()), 3),
        "min_ess": round(float(info.ess.min())),
    }


def run_case(
    case: Case, references: dict[int, Reference], classifier: str, num_workers: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per observation, in the order in which they are scored."""
    xs = np.stack([reference.x_observed for reference in references.values()])
    num_draws = len(next(iter(references.values())).samples)
    draws, chains, took = run_fresh(train_and_draw, case, xs, num_draws)
    places = {k: i for i, k in enumerate(references)}
    pairs = {k: (references[k].samples, draws[i]) for k, i in places.items()}
    for k, c2st in score_draws(pairs, num_workers, classifier):
        row = {**case._asdict(), "classifier": classifier, "observation": k}
        yield {**row, "c2st": round(c2st, 4), **chains[places[k]], **took}


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the results file, then print the table."""
    args = _parse(arguments)
    cases = (
        Case(task, method, budget, seed)
        for seed in args.seeds
        for budget in args.budgets
        for task in args.tasks
        for method in args.methods
    )
    for case in cases:
        missing = missing_observations(
            args.results,
            args.observations,
            classifier=args.classifier,
            **case._asdict(),
        )
        if not missing:
            continue
        print(f"{', '.join(map(str, case))}: {len(missing)} observations", flush=True)
        references = {k: load_reference(case.task, k) for k in missing}
        for row in run_case(case, references, args.classifier, args.num_workers):
            append_row(args.results, row)
            print(f"  {row['observation']:2d}: {row['c2st']:.3f}", flush=True)
    print_table(read_rows(args.results, classifier=args.classifier))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS
    )
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--observations", nargs="+", type=int, default=range(1, NUM_OBSERVATIONS + 1)
    )
    parser.add_argument("--classifier", choices=CLASSIFIERS, default="compiled")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "sbibm.jsonl")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
