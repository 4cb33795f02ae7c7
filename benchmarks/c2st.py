"""Does the compiled C2ST agree with scikit-learn's, and how much sooner is it done?

    python -m benchmarks.c2st --what agreement
    python -m benchmarks.c2st --what speed --dims 2 5 10

Agreement: 32 pairs of samples from the reference posteriors of sbibm, with scores
from .5 to 1.  One half of a reference set plays the reference; the other half is
shifted, widened, or given a second mode.  The pairs of 10,000 against 10,000 are the
draws of two observations, scaled to one mean and standard deviation and then shifted.
Both classifiers score each pair with several seeds; the means are compared.

Speed: normals in D dimensions, 10,000 against 10,000, shifted by .5 in all; one pair
and a batch of ten.  Both run alone, in one process, and scikit-learn on one thread,
which is as fast here as two.  The compiled function is compiled first.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, read_rows
from benchmarks.reference import load_reference

__all__ = ["main"]

Draws = np.ndarray  # [S, D]


def same(draws: Draws) -> Draws:
    return draws


def shifted(amount: float) -> Callable[[Draws], Draws]:
    """Move all columns by some standard deviations."""
    return lambda draws: draws + amount * draws.std(axis=0)


def widened(factor: float) -> Callable[[Draws], Draws]:
    return lambda draws: draws.mean(axis=0) + factor * (draws - draws.mean(axis=0))


def second_mode(share: float) -> Callable[[Draws], Draws]:
    """Move the first rows, a share of all, by three standard deviations."""
    return lambda draws: np.where(
        np.arange(len(draws))[:, None] < share * len(draws),
        draws + 3.0 * draws.std(axis=0),
        draws,
    )


CHANGES = {
    "same": same,
    "shifted .02": shifted(0.02),
    "shifted .05": shifted(0.05),
    "shifted .1": shifted(0.1),
    "shifted .3": shifted(0.3),
    "shifted 1": shifted(1.0),
    "widened 1.02": widened(1.02),
    "widened 1.2": widened(1.2),
    "widened 2": widened(2.0),
    "second mode .2": second_mode(0.2),
    "second mode .4": second_mode(0.4),
    "second mode .9": second_mode(0.9),
}
HALF, FULL = 5_000, 10_000
_HALVES = {
    "two_moons": ("same", "shifted .02", "shifted .05", "shifted .1", "widened 1.02")
    + ("second mode .2", "second mode .4", "second mode .9"),
    "gaussian_mixture": ("same", "shifted .1", "shifted .3", "shifted 1", "widened 1.2")
    + ("widened 2", "second mode .2", "second mode .9"),
    "slcp": ("same", "shifted .1", "shifted .3", "shifted 1", "widened 2")
    + ("second mode .2", "second mode .4"),
    "gaussian_linear": ("same", "shifted .1", "shifted .3", "shifted 1", "widened 1.2")
    + ("widened 2", "second mode .4"),
}
_OTHERS = {
    "two_moons": ("same", "shifted .02", "widened 1.02"),
    "gaussian_mixture": ("same", "shifted 1"),
    "slcp": ("same",),
    "gaussian_linear": ("shifted .3",),
}


class Case(NamedTuple):
    """A pair of samples; `size` draws each."""

    task: str
    change: str
    size: int


CASES = tuple(
    Case(task, change, size)
    for size, changes in ((HALF, _HALVES), (FULL, _OTHERS))
    for task in changes
    for change in changes[task]
)


def make_pair(case: Case) -> tuple[Draws, Draws]:
    """The two samples of a case, without a draw in common."""
    draws = load_reference(case.task, 1).samples
    if case.size == FULL:
        other = load_reference(case.task, 2).samples
        scaled = (other - other.mean(axis=0)) / other.std(axis=0)
        other = draws.mean(axis=0) + draws.std(axis=0) * scaled
    else:
        draws, other = draws[: case.size], draws[case.size :]
    return draws, CHANGES[case.change](other).astype(np.float32)


def with_sklearn(seed: int, reference: Draws, draws: Draws) -> float:
    with threadpool_limits(1):
        return sj.diagnostics.c2st(reference, draws, seed=seed)


def compiled(seed: int, reference: Draws, draws: Draws) -> float:
    key = jax.random.key(seed)
    return float(sj.diagnostics.c2st_compiled(key, reference, draws))


METHODS = {"sklearn": with_sklearn, "compiled": compiled}


def measure(case: Case, method: str, seed: int) -> dict[str, Any]:
    """One score of one case."""
    pair = make_pair(case)
    score = METHODS[method](seed, *pair)
    row = {"what": "agreement", **case._asdict(), "method": method, "seed": seed}
    return {**row, "c2st": round(score, 5)}


def measure_missing(
    path: Path, tasks: list[str], num_seeds: dict[str, int], num_workers: int
) -> Iterator[dict[str, Any]]:
    """Rows that the results file lacks, as they finish."""
    fields = ("task", "change", "size", "method", "seed")
    done = {
        tuple(row[name] for name in fields)
        for row in read_rows(path)
        if row["what"] == "agreement"
    }
    jobs = [
        (case, method, seed)
        for method, num in num_seeds.items()
        for seed in range(1, num + 1)
        for case in CASES
        if case.task in tasks and (*case, method, seed) not in done
    ]
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(measure, *job) for job in jobs]):
            yield job.result()


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds and CPU seconds of a call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - start, time.process_time() - cpu_start


def measure_speed(num_dims: int, num_pairs: int) -> dict[str, Any]:
    """Seconds of both for some pairs, and of the first call of the compiled one."""
    rng = np.random.default_rng(num_dims)
    shape = (num_pairs, FULL, num_dims)
    first = rng.normal(size=shape).astype(np.float32)
    second = (rng.normal(size=shape) + 0.5 / num_dims**0.5).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), num_pairs)
    score = jax.jit(
        lambda *pairs: jax.lax.map(lambda p: sj.diagnostics.c2st_compiled(*p), pairs)
    )
    start = time.perf_counter()
    run = score.lower(keys, first, second).compile()
    compile_seconds = time.perf_counter() - start
    ours, seconds, cpu_seconds = timed(lambda: np.asarray(run(keys, first, second)))
    theirs, sklearn_seconds, sklearn_cpu_seconds = timed(
        lambda: [with_sklearn(1, *pair) for pair in zip(first, second, strict=True)]
    )
    return {
        "what": "speed",
        "num_dims": num_dims,
        "num_pairs": num_pairs,
        "c2st": round(float(np.mean(ours)), 4),
        "sklearn_c2st": round(float(np.mean(theirs)), 4),
        "seconds": round(seconds, 3),
        "sklearn_seconds": round(sklearn_seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "sklearn_cpu_seconds": round(sklearn_cpu_seconds, 3),
        "compile_seconds": round(compile_seconds, 2),
        **environment(),
    }


def print_agreement(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds, their difference and its standard error."""
    print(f"{'':50s} {'sklearn':>14s} {'compiled':>14s} {'difference':>17s}  one seed")
    found = []
    for case in CASES:
        mine = [row for row in rows if Case(*map(row.get, Case._fields)) == case]
        scores = {
            name: np.array([r["c2st"] for r in mine if r["method"] == name])
            for name in METHODS
        }
        if len(scores["compiled"]) < 2 or not len(scores["sklearn"]):
            continue
        means = [scores[name].mean() for name in METHODS]
        errors = [
            s.std(ddof=1) / len(s) ** 0.5 if len(s) > 1 else np.nan
            for s in scores.values()
        ]
        difference = means[1] - means[0]
        one = scores["compiled"][0] - scores["sklearn"][0]
        found.append((difference, one))
        cells = [
            f"{m:.4f} ({len(s):2d} x)"
            for m, s in zip(means, scores.values(), strict=True)
        ]
        print(
            f"{case.task:18s} {case.change:16s} {case.size:6d}        {cells[0]:>14s} "
            f"{cells[1]:>14s} {difference:+.4f} +- {np.hypot(*errors):.4f}  {one:+.4f}"
        )
    if found:
        mean, single = (np.array(column) for column in zip(*found, strict=True))
        print(
            f"{len(found)} pairs: mean difference {mean.mean():+.4f}, largest "
            f"{np.abs(mean).max():.4f}, {np.sum(np.abs(mean) <= 0.005)} within .005 "
            f"(one seed: largest {np.abs(single).max():.4f}, "
            f"{np.sum(np.abs(single) <= 0.005)} within)"
        )


def print_speed(rows: list[dict[str, Any]]) -> None:
    """Print seconds of both, their ratio, and that of CPU seconds."""
    print("  D  pairs   sklearn s  compiled s  ratio  CPU ratio  (compile s)")
    for row in rows:
        ratio = row["sklearn_seconds"] / row["seconds"]
        cpu_ratio = row["sklearn_cpu_seconds"] / row["cpu_seconds"]
        print(
            f"{row['num_dims']:3d} {row['num_pairs']:6d} "
            f"{row['sklearn_seconds']:11.2f} {row['seconds']:11.2f} {ratio:6.1f} "
            f"{cpu_ratio:10.1f}  ({row['compile_seconds']:.1f})"
        )


def main() -> None:
    """Run what is missing in the results file, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", nargs="*", choices=("agreement", "speed"), default=[])
    parser.add_argument("--tasks", nargs="+", choices=_HALVES, default=list(_HALVES))
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 5, 10])
    parser.add_argument("--pairs", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--sklearn-seeds", type=int, default=3)
    parser.add_argument("--compiled-seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "c2st.jsonl")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if "agreement" in args.what:
        num_seeds = {"compiled": args.compiled_seeds, "sklearn": args.sklearn_seeds}
        for row in measure_missing(args.results, args.tasks, num_seeds, args.workers):
            append_row(args.results, row)
            print(*row.values(), flush=True)
    if "speed" in args.what:
        done = {
            (row["num_dims"], row["num_pairs"])
            for row in read_rows(args.results)
            if row["what"] == "speed"
        }
        for case in [(d, n) for n in args.pairs for d in args.dims]:
            if case not in done:
                append_row(args.results, measure_speed(*case))
    rows = read_rows(args.results)
    print_agreement([row for row in rows if row["what"] == "agreement"])
    print_speed([row for row in rows if row["what"] == "speed"])


if __name__ == "__main__":
    main()
