"""SMC-ABC: how close, how fast beside pyABC, and for 100 observations.

    python -m benchmarks.abc --what accuracy --seeds 0 1
    python -m benchmarks.abc --what speed --peer-python /path/to/python
    python -m benchmarks.abc --what batch

Accuracy is C2ST of 10,000 draws against sbibm's reference posteriors, for
observations 1 to 10, with 100,000 simulations for each observation: 1,000 of them
scale the distance.  0.5 is a perfect score.  Each (task, method, observation, seed)
is a line of `results/abc.jsonl`; lines that are there are not run again.

Speed and batch are those of two_moons, compiled; they are lines of
`results/abc_speed.jsonl`.  With `--peer-python`, an interpreter that has pyABC, pyABC
goes to the same tolerance.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

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
from sbijax.base import Array, Estimator, Params
from sbijax.samplers.weights import draw_weighted

__all__ = ["main"]

NUM_SIMULATIONS = 100_000
NUM_PILOTS = 1_000
TOLERANCE = 0.02
NUM_PARTICLES = 1_000
NUM_NEW = 20_000  # draws of a cheap simulator cost less than a population
NUM_BATCH = 100
REPEATS = 5


class Case(NamedTuple):
    """One method on one task, and the C2ST it should have."""

    task: str
    method: str
    make: Callable[..., Estimator]
    published: float | None = None
    goal: float | None = None
    better: float | None = None


def _smc(*args: Any, **options: Any) -> Estimator:
    return sj.make_smc_abc(*args, num_particles=2_000, **options)


def _smc_linear(*args: Any, **options: Any) -> Estimator:
    return sj.make_smc_abc(
        *args,
        num_particles=40_000,
        adjustment=sj.abc.linear_adjustment(),
        kernel=sj.abc.normal_kernel(),
        **options,
    )


def _rejection_linear(*args: Any, **options: Any) -> Estimator:
    adjustment = sj.abc.linear_adjustment()
    return sj.make_rejection_abc(*args, quantile=0.2, adjustment=adjustment, **options)


CASES = (
    Case("two_moons", "smc", _smc, 0.663, 0.62, 0.56),
    Case("two_moons", "rejection", partial(sj.make_rejection_abc, quantile=0.01)),
    Case("gaussian_linear", "smc, linear", _smc_linear, 0.726, 0.65, 0.56),
    Case("gaussian_linear", "rejection, linear", _rejection_linear),
)


def make(
    case: Case, seed: int, num_simulations: int
) -> tuple[Estimator, Params, sj.Simulations, Array]:
    """The estimator of a case, its parameters, its pilots and a key to draw with."""
    task = getattr(sj.simulators, case.task)()
    key_sims, key_init, key_draws = jax.random.split(jax.random.key(seed), 3)
    pilots = sj.simulate(
        key_sims, task.prior, task.simulator, NUM_PILOTS, progress=False
    )
    num_left = num_simulations - NUM_PILOTS
    abc = case.make(task.prior, task.simulator, num_simulations=num_left)
    return abc, abc.init(key_init, pilots), pilots, key_draws


def draw(
    num_case: int, seed: int, num_simulations: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws `[10, 10000, D]` for all observations of a task, and what they took."""
    case = CASES[num_case]
    abc, params, _, key = make(case, seed, num_simulations)
    sample = jax.jit(lambda k, x: abc.sample(params, k, x, num_samples=10_000))
    samples, took = [], []
    for k, key_one in enumerate(jax.random.split(key, NUM_OBSERVATIONS)):
        x = load_reference(case.task, k + 1).x_observed
        start, start_cpu = time.perf_counter(), time.process_time()
        theta, info = jax.block_until_ready(sample(key_one, x))
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        samples.append(to_matrix(theta))
        took.append(
            {
                "num_simulations": int(info.num_simulations) + NUM_PILOTS,
                **_describe(info),
                "compiled": k > 0,  # by the call before
                "seconds": round(seconds - start, 3),
                "cpu_seconds": round(cpu_seconds - start_cpu, 3),
                **environment(),
            }
        )
    return np.stack(samples), took


def _describe(info: sj.AbcInfo) -> dict[str, Any]:
    last = int(info.num_populations)
    return {
        "num_populations": last,
        "tolerance": round(float(info.tolerance[last]), 5),
        "acceptance": round(float(info.acceptance[last]), 4),
        "ess": round(float(info.population_ess[last])),
        "stop_reason": int(info.stop_reason),
    }


def run_one(
    num_case: int,
    seed: int,
    observations: list[int],
    num_simulations: int,
    num_workers: int,
) -> Iterator[dict[str, Any]]:
    """Yield one row per observation, in the order in which they are scored."""
    case = CASES[num_case]
    samples, took = run_fresh(draw, num_case, seed, num_simulations)
    pairs = {
        k: (load_reference(case.task, k).samples, samples[k - 1]) for k in observations
    }
    for k, c2st in score_draws(pairs, num_workers):
        row = {"task": case.task, "method": case.method, "observation": k, "seed": seed}
        yield {**row, "c2st": round(c2st, 4), **took[k - 1]}


def print_accuracy(rows: list[dict[str, Any]]) -> None:
    """Print the mean of each case beside its goals."""
    print("C2ST, 0.5 is perfect; sd of the observations' and seeds' means")
    print(
        f"{'task':16s} {'method':17s} {'seeds':>5s} {'mean':>6s} {'sd obs':>7s} "
        f"{'sd seeds':>9s} {'worst':>6s} {'published':>9s} {'goal':>5s} {'better':>6s}"
        "  tolerance; seconds, compiled"
    )
    for case in CASES:
        mine = [
            row
            for row in rows
            if (row["task"], row["method"]) == (case.task, case.method)
        ]
        if not mine:
            continue
        by_seed, by_observation = means_by(mine, "seed"), means_by(mine, "observation")
        missing = len(by_seed) * NUM_OBSERVATIONS - len(mine)
        seconds = [row["seconds"] for row in mine if row["compiled"]]
        print(
            f"{case.task:16s} {case.method:17s} {len(by_seed):5d} "
            f"{np.mean(by_seed):6.3f} {format_sd(by_observation):>7s} "
            f"{format_sd(by_seed):>9s} {max(row['c2st'] for row in mine):6.3f} "
            f"{case.published or '-':>9} {case.goal or '-':>5} {case.better or '-':>6}"
            f"  {spread(row['tolerance'] for row in mine)}"
            + (f"; {spread(seconds)}" if seconds else "")
            + (f"  ({missing} rows missing)" if missing else "")
        )


def time_to_tolerance(seed: int) -> tuple[list[dict[str, Any]], np.ndarray, float]:
    """Go down to the tolerance a few times; draws `[1000, 2]` of the first time."""
    task = sj.simulators.two_moons()
    x = load_reference("two_moons", 1).x_observed
    abc = sj.make_smc_abc(
        task.prior,
        task.simulator,
        num_simulations=1_000_000,
        num_particles=NUM_PARTICLES,
        num_new=NUM_NEW,
        min_tolerance=TOLERANCE,
        min_acceptance=0.0,
        distance=lambda s, observed: jnp.linalg.norm(s - observed),
    )
    key_sims, key_init, key = jax.random.split(jax.random.key(seed), 3)
    pilots = sj.simulate(
        key_sims, task.prior, task.simulator, NUM_PILOTS, progress=False
    )
    params = abc.init(key_init, pilots)
    sample = jax.jit(lambda k, x: abc.sample(params, k, x, num_samples=NUM_PARTICLES))
    start = time.perf_counter()
    jax.block_until_ready(sample(jax.random.key(seed), x))
    first_seconds = time.perf_counter() - start
    runs, draws = [], []
    for key_one in jax.random.split(key, REPEATS):
        start, start_cpu = time.perf_counter(), time.process_time()
        theta, info = jax.block_until_ready(sample(key_one, x))
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - start_cpu
        draws.append(to_matrix(theta))
        count = int(info.num_simulations)
        took = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        runs.append({**took, "num_simulations": count, **_describe(info)})
    return runs, draws[0], first_seconds


def run_peer(python: Path, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Let pyABC go to the same tolerance, and resample its particles as ours."""
    x = load_reference("two_moons", 1).x_observed
    script = Path(__file__).with_name("peer_pyabc.py").resolve()
    with tempfile.TemporaryDirectory() as folder:
        # Its folder has a module abc: -P keeps it from hiding the standard one.
        command = [python.absolute(), "-P", script, "particles.npz"]
        command += ["--population-size", NUM_PARTICLES, "--tolerance", TOLERANCE]
        command += ["--observed", *x.tolist()]
        done = subprocess.run(
            list(map(str, command)), check=True, cwd=folder, stdout=subprocess.PIPE
        )
        with np.load(Path(folder) / "particles.npz") as particles:
            theta, weight = particles["theta"], particles["weight"]
    weight = jnp.asarray(weight / weight.sum(), jnp.float32)
    draws, _ = draw_weighted(
        jax.random.key(seed), jnp.asarray(theta), weight, NUM_PARTICLES
    )
    return json.loads(done.stdout.splitlines()[-1]), np.asarray(draws, np.float32)


def compare(seed: int, python: Path | None, num_workers: int) -> dict[str, Any]:
    """Time ours, and the peer where there is one, and score the draws of both."""
    runs, draws, first_seconds = run_fresh(time_to_tolerance, seed)
    row = {"what": "speed", "seed": seed, **environment()}
    row["ours"] = {"first_seconds": first_seconds, "runs": runs}
    reference = load_reference("two_moons", 1).samples[:NUM_PARTICLES]
    pairs = {0: (reference, draws)}
    if python is not None:
        row["peer"], draws = run_peer(python, seed)
        pairs[1] = (reference, draws)
    names = ("ours", "peer")
    for k, c2st in score_draws(pairs, num_workers):
        row[names[k]]["c2st"] = round(c2st, 4)
    return row


def print_speed(row: dict[str, Any]) -> None:
    """Print what the tolerance took, beside the peer."""
    ours, peer = row["ours"], row.get("peer")
    runs = ours["runs"]
    rates = [run["num_simulations"] / run["seconds"] for run in runs]
    seconds = [run["seconds"] for run in runs]
    print(f"two_moons, observation 1, to tolerance {TOLERANCE}, seed {row['seed']}")
    cpu_seconds = float(np.median([run["cpu_seconds"] for run in runs]))
    count = float(np.median([run["num_simulations"] for run in runs]))
    print(
        f"  ours: {spread(seconds)} s, {np.median(rates):,.0f} simulations a second, "
        f"{count:,.0f} simulations, tolerance "
        f"{spread(run['tolerance'] for run in runs)}, C2ST {ours['c2st']:.3f}; "
        f"first call {ours['first_seconds']:.1f} s"
    )
    if peer:
        rate = peer["num_simulations"] / peer["seconds"]
        print(
            f"  {peer['package']}, {peer['num_processes']} processes: "
            f"{peer['seconds']:.1f} s, {rate:,.0f} simulations a second, "
            f"{peer['num_simulations']:,} simulations, tolerance "
            f"{peer['tolerance']:.4f}, C2ST {peer['c2st']:.3f}; one simulation takes "
            f"{peer['microseconds_a_simulation']:.0f} microseconds there"
        )
        # With a core for each of its processes the peer would take this at least.
        alone = peer["cpu_seconds"] / peer["num_processes"]
        print(
            f"  {np.median(rates) / rate:,.0f} times the simulations a second; "
            f"{peer['seconds'] / np.median(seconds):,.0f} times sooner at the "
            f"tolerance, {alone / cpu_seconds:,.0f} times in CPU seconds a process"
        )


def time_batch(seed: int) -> dict[str, Any]:
    """Seconds of one observation and of 100, shared by all devices, of a CPU two."""
    jax.config.update("jax_num_cpu_devices", 2)
    num_devices = len(jax.devices())
    abc, params, pilots, key = make(CASES[0], seed, NUM_SIMULATIONS)
    keys, xs = jax.random.split(key, NUM_BATCH), pilots.x[:NUM_BATCH]

    def sample(key: Array, x: Array) -> Any:
        return abc.sample(params, key, x, num_samples=1_000)

    spread_out = jax.shard_map(
        jax.vmap(sample),
        mesh=jax.make_mesh(
            (num_devices,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)
        ),
        in_specs=(P("x"), P("x")),
        out_specs=P("x"),
        check_vma=False,
    )
    one = jax.jit(sample).lower(keys[0], xs[0]).compile()
    many = jax.jit(spread_out).lower(keys, xs).compile()
    # Before and after the batch, as other work on the machine comes and goes.
    jax.block_until_ready(one(keys[0], xs[0]))
    before = [_time(one, keys[k], xs[k]) for k in range(REPEATS)]
    many_seconds, many_cpu_seconds = _time(many, keys, xs)
    after = [_time(one, keys[k], xs[k]) for k in range(REPEATS)]
    one_seconds, one_cpu_seconds = zip(*before, *after, strict=True)
    return {
        "what": "batch",
        "seed": seed,
        "num_observations": NUM_BATCH,
        "num_devices": num_devices,
        "one_seconds": one_seconds,
        "one_cpu_seconds": one_cpu_seconds,
        "many_seconds": many_seconds,
        "many_cpu_seconds": many_cpu_seconds,
        **environment(),
    }


def _time(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Seconds and CPU seconds of a call that is compiled already."""
    start, start_cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start, time.process_time() - start_cpu


def print_batch(row: dict[str, Any]) -> None:
    """Print the seconds of a batch over those of one."""
    one = float(np.median(row["one_seconds"]))
    cpu_share = row["many_cpu_seconds"] / np.median(row["one_cpu_seconds"])
    print(
        f"{row['num_observations']} observations of two_moons: "
        f"{row['many_seconds']:.1f} s, one {spread(row['one_seconds'])} s; "
        f"{row['many_seconds'] / one:.1f} times one (goal 60); "
        f"{cpu_share / row['num_devices']:.1f} times in CPU seconds over "
        f"{row['num_devices']} devices"
    )


def main() -> None:
    """Run what was asked for, keep it and print it."""
    args = _parse()
    if args.what == "accuracy":
        results = args.results or RESULTS / "abc.jsonl"
        for num_case, case in enumerate(CASES):
            for seed in args.seeds:
                missing = missing_observations(
                    results,
                    args.observations,
                    task=case.task,
                    method=case.method,
                    seed=seed,
                )
                if not missing:
                    continue
                print(f"{case.task}, {case.method}, seed {seed}: {len(missing)} C2ST")
                for row in run_one(
                    num_case, seed, missing, args.num_simulations, args.num_workers
                ):
                    append_row(results, row)
                    print(f"  observation {row['observation']:2d}: {row['c2st']:.3f}")
        print_accuracy(read_rows(results))
        return
    for seed in args.seeds:
        if args.what == "speed":
            row = compare(seed, args.peer_python, args.num_workers)
            print_speed(row)
        else:
            row = run_fresh(time_batch, seed)
            print_batch(row)
        append_row(args.results or RESULTS / "abc_speed.jsonl", row)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--what", choices=("accuracy", "speed", "batch"), default="accuracy"
    )
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--observations", nargs="+", type=int, default=range(1, NUM_OBSERVATIONS + 1)
    )
    parser.add_argument("--num-simulations", type=int, default=NUM_SIMULATIONS)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
