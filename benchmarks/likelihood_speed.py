"""How long NLE takes: to train, to sample, for many observations and for SBC.

    python -m benchmarks.likelihood_speed --seeds 0 1
    python -m benchmarks.likelihood_speed --seeds 0 --peer-python /path/to/python

For two_moons and slcp with 10,000 simulations: the default NLE is trained, its
default sampler draws for observations 1 and 2 of the reference set, and the
smallest bulk ESS is divided by the seconds of a call that is compiled already.
One call then draws 4 x 1,000 for 100 observations of slcp, compilation included,
and SBC of two_moons ranks 200 replicates.

With `--peer-python`, an interpreter that has sbi, sbi's default NLE does the same
training and sampling on the same arrays in the same run.  Seconds of ours to its
held-out loss are those of a training with the `max_epochs` that just reaches it,
compilation included, against sbi's up to its best epoch.
"""

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, run_fresh
from benchmarks.reference import load_reference
from sbijax.samplers.report import report

__all__ = ["main"]

TASKS = ("slcp", "two_moons")
BOUNDS = {"slcp": 3.0, "two_moons": 1.0}
NUM_OBSERVATIONS = 2


def make_arrays(path: Path, task_name: str, seed: int) -> None:
    """Write what both packages read: training and held-out rows, observations."""
    task = getattr(sj.simulators, task_name)()
    train_key, test_key = jax.random.split(jax.random.key(seed))
    sims, test = (
        sj.simulate(key, task.prior, task.simulator, 10_000, progress=False)
        for key in (train_key, test_key)
    )
    xs = [load_reference(task_name, k + 1).x_observed for k in range(NUM_OBSERVATIONS)]
    num_dims = sims.theta.shape[1]
    np.savez(
        path,
        theta=sims.theta,
        x=sims.x,
        test_theta=test.theta,
        test_x=test.x,
        low=np.full(num_dims, -BOUNDS[task_name]),
        high=np.full(num_dims, BOUNDS[task_name]),
        x_observed=np.stack(xs),
    )


def train(
    arrays: Path, task_name: str, seed: int, max_epochs: int | None
) -> tuple[Any, dict[str, Any], Any]:
    """Train the default NLE; return it, what it took, and its parameters."""
    data = np.load(arrays)
    nle = sj.make_nle(getattr(sj.simulators, task_name)().prior)
    sims = jax.block_until_ready(sj.make_simulations(data["theta"], data["x"]))
    options = {} if max_epochs is None else {"max_epochs": max_epochs}
    start = time.perf_counter()
    with warnings.catch_warnings():  # that the loss still falls is no news
        warnings.simplefilter("ignore", sj.SbijaxWarning)
        params, info = jax.block_until_ready(
            sj.train(jax.random.key(seed), nle, sims, progress=False, **options)
        )
    seconds = time.perf_counter() - start
    score = jax.jit(jax.vmap(nle.log_likelihood, (None, 0, 0)))
    losses = -np.asarray(score(params, data["test_theta"], data["test_x"]))
    took = {
        "train_seconds": seconds,
        "num_epochs": int(info.num_epochs),
        "best_val_loss": float(info.best_loss),
        "val_loss": np.asarray(info.val_loss)[: int(info.num_epochs)].tolist(),
        "test_loss": float(losses.mean()),
    }
    return nle, took, params


def train_only(
    arrays: Path, task_name: str, seed: int, max_epochs: int
) -> dict[str, Any]:
    """What a shorter training takes, for a fresh process."""
    return train(arrays, task_name, seed, max_epochs)[1]


def measure(arrays: Path, task_name: str, seed: int) -> dict[str, Any]:
    """Train, then time the sampler in all its uses."""
    nle, took, params = train(arrays, task_name, seed, None)
    data = np.load(arrays)
    draw = jax.jit(lambda k, x: nle.sample(params, k, x, num_samples=1_000))
    result: dict[str, Any] = {"train": took, "observations": []}
    start = time.perf_counter()
    jax.block_until_ready(draw(jax.random.key(0), data["x_observed"][0]))
    result["first_draw_seconds"] = time.perf_counter() - start
    for k, x in enumerate(data["x_observed"]):
        seconds = []
        for repeat in range(3):
            start = time.perf_counter()
            theta, info = jax.block_until_ready(draw(jax.random.key(repeat), x))
            seconds.append(time.perf_counter() - start)
        result["observations"].append(
            {
                "seconds": seconds,
                "min_ess": float(info.ess.min()),
                "max_rhat": float(info.rhat.max()),
                "c2st": _score(task_name, k + 1, np.asarray(theta)),
            }
        )
    if task_name == "slcp":
        result["many_seconds"] = _draw_many(nle, params, seed)
    else:
        result.update(_calibrate(nle, params, seed))
    return result


def _score(task_name: str, num_observation: int, draws: np.ndarray) -> float:
    """C2ST of as many draws of the reference posterior."""
    reference = load_reference(task_name, num_observation).samples[: len(draws)]
    return float(sj.diagnostics.c2st(reference, draws))


def _fresh_simulations(task_name: str, seed: int, num: int) -> sj.Simulations:
    task = getattr(sj.simulators, task_name)()
    key = jax.random.fold_in(jax.random.key(seed), 7)
    return jax.block_until_ready(
        sj.simulate(key, task.prior, task.simulator, num, progress=False)
    )


def _draw_many(nle: Any, params: Any, seed: int) -> float:
    """Seconds of one call: 100 observations x 4 populations x 1,000 draws."""
    xs = _fresh_simulations("slcp", seed, 100).x
    keys = jax.random.split(jax.random.key(seed + 1), 100)
    draw = jax.vmap(lambda k, x: sj.infer(nle, params, x).sample(k, 4_000))
    start = time.perf_counter()
    jax.block_until_ready(draw(keys, xs))
    return time.perf_counter() - start


def _calibrate(nle: Any, params: Any, seed: int) -> dict[str, Any]:
    """Seconds of SBC with 200 replicates, compilation included."""
    sims = _fresh_simulations("two_moons", seed, 200)
    start = time.perf_counter()
    result = sj.diagnostics.sbc(
        jax.random.key(seed + 2), nle, params, sims, num_samples=1_000
    )
    seconds = time.perf_counter() - start
    return {"sbc_seconds": seconds, "sbc_p_value": float(result.global_p_value)}


def run_peer(python: Path, arrays: Path, task_name: str, seed: int) -> dict[str, Any]:
    """Train and sample sbi's default NLE in its own environment."""
    script = Path(__file__).with_name("peer_sbi_nle.py").resolve()
    result, chains = arrays.with_name("peer.json"), arrays.with_name("chains.npz")
    command = [python.absolute(), script, arrays, result, chains, "--seed", str(seed)]
    subprocess.run([*map(str, command)], check=True, cwd=arrays.parent)
    peer = dict(json.loads(result.read_text()))
    peer["observations"] = []
    drawn = np.load(chains)["chains"]
    for k, (traces, seconds) in enumerate(
        zip(drawn, peer.pop("sample_seconds"), strict=True)
    ):
        _, info = report(jnp.asarray(traces))
        draws = traces.reshape(-1, traces.shape[-1])
        peer["observations"].append(
            {
                "seconds": [seconds],
                "min_ess": float(info.ess.min()),
                "max_rhat": float(info.rhat.max()),
                "c2st": _score(task_name, k + 1, draws[:1_000]),
            }
        )
    return peer


def race(
    target: float, arrays: Path, task_name: str, seed: int, default: dict[str, Any]
) -> dict[str, Any] | None:
    """Time a training that is just long enough to reach a held-out loss."""
    if default["test_loss"] > target:
        return None
    offset = default["test_loss"] - default["best_val_loss"]
    reached = np.minimum.accumulate(default["val_loss"]) + offset <= target
    max_epochs = int(np.argmax(reached)) + 1
    run: dict[str, Any] = run_fresh(train_only, arrays, task_name, seed, max_epochs)
    while run["test_loss"] > target and max_epochs < default["num_epochs"]:
        max_epochs += 1 + max_epochs // 10
        run = run_fresh(train_only, arrays, task_name, seed, max_epochs)
    return run


def compare(task_name: str, seed: int, python: Path | None) -> dict[str, Any]:
    """One task and seed, with the peer where there is one."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        make_arrays(arrays, task_name, seed)
        row = {"task": task_name, "seed": seed, **environment()}
        row["ours"] = run_fresh(measure, arrays, task_name, seed)
        if python is not None:
            row["peer"] = run_peer(python, arrays, task_name, seed)
            row["race"] = race(
                row["peer"]["test_loss"], arrays, task_name, seed, row["ours"]["train"]
            )
    for run in (row["ours"]["train"], row.get("race") or {}):
        run.pop("val_loss", None)
    return row


def print_row(row: dict[str, Any]) -> None:
    """Print one task and seed."""
    ours, peer = row["ours"], row.get("peer")
    print(f"{row['task']}, seed {row['seed']}")
    print(
        f"  trained in {ours['train']['train_seconds']:.1f} s to a held-out loss of "
        f"{ours['train']['test_loss']:.3f}; first draw "
        f"{ours['first_draw_seconds']:.1f} s"
    )
    for name, run in (("ours", ours), ("sbi", peer)):
        for k, seen in enumerate(run["observations"] if run else []):
            seconds = float(np.median(seen["seconds"]))
            print(
                f"  {name}, observation {k + 1}: 1,000 draws in {seconds:.3g} s, "
                f"smallest ESS {seen['min_ess']:.0f}, "
                f"{seen['min_ess'] / seconds:,.0f} a second, R-hat "
                f"{seen['max_rhat']:.3f}, C2ST {seen['c2st']:.3f}"
            )
    if "many_seconds" in ours:
        print(f"  100 x 4 x 1,000 draws, goal 60 s: {ours['many_seconds']:.1f} s")
    if "sbc_seconds" in ours:
        print(
            f"  SBC of 200 replicates, goal 120 s: {ours['sbc_seconds']:.1f} s, "
            f"p-value {ours['sbc_p_value']:.2g}"
        )
    if peer:
        run = row["race"]
        print(
            f"  sbi reached {peer['test_loss']:.3f} after "
            f"{peer['seconds_to_best']:.1f} s; ours "
            + (
                f"{run['test_loss']:.3f} after {run['train_seconds']:.1f} s, "
                f"{peer['seconds_to_best'] / run['train_seconds']:.1f} times sooner"
                if run
                else "did not"
            )
        )


def main() -> None:
    """Run all tasks and seeds, print them and add them to the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "likelihood_speed.jsonl"
    )
    args = parser.parse_args()
    for task_name in args.tasks:
        for seed in args.seeds:
            row = compare(task_name, seed, args.peer_python)
            append_row(args.results, row)
            print_row(row)


if __name__ == "__main__":
    main()
