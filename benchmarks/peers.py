"""Ours beside the other packages: the same arrays, one after the other, in one run.

    make bench-peers
    python -m benchmarks.peers --tasks slcp --methods npe nle --peers sbi --seeds 0 1

Each package has an environment of its own under `.cache/peers/`, made with its pinned
version when it is first needed.  For each task, method, budget and seed all of them
train on the same simulations with their defaults, draw 10,000 times for the same
observations, and give the density of the same held-out simulations
(`peer_pipeline.py`); a peer has a row for each of the networks it offers.  Then the
draws are scored against the reference posterior.

Seconds are those of a fresh process without its imports, compilation included:
training and 10,000 draws for one observation.  `times sooner` divides those of the
peer by ours.  `to its loss` divides by our seconds to the held-out loss of the peer:
training follows one path however long it lasts, so the epochs up to there are counted,
and compilation with them.  Only rows of one run are divided, and only on a machine
without other work do they mean anything.

Each (task, method, budget, seed, package, network) is a line of `results/peers.jsonl`;
lines that are there are not run again, but ours is, beside what is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import (
    RESULTS,
    append_row,
    commit,
    environment,
    read_rows,
    score_draws,
)
from benchmarks.reference import Reference, load_reference

__all__ = ["ENTRIES", "PEERS", "Case", "main", "make_arrays", "make_table", "run_case"]

_ENVIRONMENTS = Path(__file__).parent / ".cache" / "peers"
_SCRIPT = Path(__file__).with_name("peer_pipeline.py")
_NUM_TESTS = 2_000
TASKS = ("two_moons", "slcp", "gaussian_linear", "gaussian_mixture")
_BOUNDS = {"two_moons": 1.0, "slcp": 3.0, "gaussian_mixture": 10.0}
_OURS = "ours"


class Peer(NamedTuple):
    """A package: what pip installs, and which interpreter that needs."""

    title: str
    requirements: tuple[str, ...]
    python: str


PEERS = {
    "sbi": Peer("sbi", ("sbi==0.27.0", "torch==2.13.0"), "python3.11"),
    "sbijax_pypi": Peer("sbijax of PyPI", ("sbijax==0.4.2",), "python3.12"),
    "bayesflow": Peer("BayesFlow", ("bayesflow==2.0.12", "jax==0.10.2"), "python3.11"),
}
# The networks that a package offers by name, for each method.
ENTRIES: dict[str, dict[str, tuple[str, ...]]] = {
    "npe": {
        "sbi": ("maf", "nsf"),
        "sbijax_pypi": ("maf", "spf"),
        "bayesflow": ("coupling_flow", "flow_matching"),
    },
    "nle": {"sbi": ("maf", "nsf"), "sbijax_pypi": ("maf",)},
    "nre": {"sbi": ("default",), "sbijax_pypi": ("resnet",)},
    "fmpe": {"sbi": ("default",), "sbijax_pypi": ("cnf",)},
}


class Case(NamedTuple):
    """What all packages of a comparison share."""

    task: str
    method: str
    budget: int
    seed: int


def interpreter(name: str) -> Path | None:
    """The interpreter of a peer's environment, made if need be.

    Returns:
        None where the Python that the package needs is not to be found; `PATH` and the
        variable `PEER_PATH`, folders in the same form, are searched.
    """
    folder, peer = _ENVIRONMENTS / name, PEERS[name]
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text() == wanted:
        return python
    base = _find_python(peer.python)
    if base is None:
        return None
    print(f"Installing {', '.join(peer.requirements)} into its own environment.")
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    # -P and no PYTHONPATH: neither pip nor a package may find this project.
    install = [str(python), "-P", "-m", "pip", "install", "--quiet", *peer.requirements]
    subprocess.run(install, check=True, env=_without_path())
    done.write_text(wanted)
    return python


def _find_python(name: str) -> str | None:
    """A Python of this version, asked for its version: shims may stand for nothing."""
    folders = os.get_exec_path() + os.environ.get("PEER_PATH", "").split(os.pathsep)
    candidates = [sys.executable, *(os.path.join(f, name) for f in folders if f)]
    for candidate in filter(os.path.exists, candidates):
        done = subprocess.run([candidate, "-V"], capture_output=True, text=True)
        if done.stdout.startswith(f"Python {name.removeprefix('python')}."):
            return candidate
    return None


def _without_path() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def make_arrays(path: Path, case: Case, references: dict[int, Reference]) -> None:
    """Write what all packages read: simulations, held-out ones, observations, prior."""
    task = getattr(sj.simulators, case.task)()
    keys = jax.random.split(jax.random.key(case.seed))
    sims, test = (
        sj.simulate(key, task.prior, task.simulator, size, progress=False)
        for key, size in zip(keys, (case.budget, _NUM_TESTS), strict=True)
    )
    dims = sims.theta.shape[1]
    bound = _BOUNDS.get(case.task)
    prior = (
        {"loc": np.zeros(dims), "scale": np.full(dims, np.sqrt(0.1))}
        if bound is None
        else {"low": np.full(dims, -bound), "high": np.full(dims, bound)}
    )
    np.savez(
        path,
        theta=sims.theta,
        x=sims.x,
        test_theta=test.theta,
        test_x=test.x,
        x_observed=np.stack(
            [reference.x_observed for reference in references.values()]
        ),
        **prior,
    )


def run_package(
    python: Path, package: str, network: str, case: Case, arrays: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """Run `peer_pipeline.py` in an environment; return its record and its draws."""
    result, draws = arrays.with_name("result.json"), arrays.with_name("draws.npz")
    command = [python, "-P", _SCRIPT, package, case.method, network]
    command += [arrays, result, draws, "--seed", case.seed]
    variables = dict(os.environ) if package == _OURS else _without_path()
    log = arrays.with_name(f"{package}.log")
    with log.open("w") as file:
        done = subprocess.run(
            [*map(str, command)],
            cwd=arrays.parent,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(
            f"{package}, {network} ended with {done.returncode}:\n"
            + log.read_text()[-3_000:]
        )
    with np.load(draws) as file:
        return json.loads(result.read_text()), file["draws"]


def run_case(
    case: Case,
    entries: list[tuple[str, str]],
    observations: list[int],
    num_workers: int,
) -> Iterator[dict[str, Any]]:
    """Yield one row for ours and for each (package, network), in this order.

    A package whose Python is missing has a row that says so.
    """
    references = {k: load_reference(case.task, k) for k in observations}
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        make_arrays(arrays, case, references)
        for package, network in [(_OURS, "default"), *entries]:
            row = {**case._asdict(), "package": package, "network": network, "run": run}
            python = Path(sys.executable) if package == _OURS else interpreter(package)
            if python is None:
                yield {**row, "missing": f"{PEERS[package].python} was not found"}
                continue
            result, draws = run_package(python, package, network, case, arrays)
            pairs = {
                k: (reference.samples, draws[i])
                for i, (k, reference) in enumerate(references.items())
            }
            scores = dict(score_draws(pairs, num_workers, "compiled"))
            yield {
                **row,
                "observations": observations,
                "c2st": [round(scores[k], 4) for k in observations],
                **result,
                **environment(),
                "commit": commit(),
            }


def seconds_of(row: dict[str, Any], max_epochs: int | None = None) -> float:
    """Seconds of training and of the first 10,000 draws.

    With `max_epochs`, of a training that ends there: epochs take equal shares of what
    is not compilation, and compilation counts whole.
    """
    seconds = float(row["train_seconds"])
    if max_epochs is not None:
        share = max_epochs / len(row["val_loss"])
        seconds = row["compile_seconds"] + share * (seconds - row["compile_seconds"])
    return seconds + float(row["draw_seconds"][0])


def epochs_to(row: dict[str, Any], loss: float) -> int | None:
    """Epochs until our held-out loss is that low, None if it never is.

    Held-out and validation losses differ by what they differ at the end.
    """
    offset = row["test_loss"] - min(row["val_loss"])
    reached = np.minimum.accumulate(row["val_loss"]) + offset <= loss
    return int(np.argmax(reached)) + 1 if reached.any() else None


def make_table(rows: list[dict[str, Any]]) -> str:
    """One line for each package and network, a dash where there is nothing to say."""
    lines = [
        "| task | method | simulations | package | C2ST | held-out loss | seconds | "
        "times sooner | to its loss | batch | SBC |",
        "|" + "---|" * 11,
    ]
    groups = defaultdict(list)
    for row in rows:
        groups[*(row[name] for name in Case._fields), row["run"]].append(row)
    for (task, method, budget, *_), group in groups.items():
        ours = next(row for row in group if row["package"] == _OURS)
        for row in group:
            start = f"| {task} | {method} | {budget:,} | {_title(row)} | "
            if "missing" in row:
                lines.append(start + f"{row['missing']} |" + " |" * 6)
            else:
                lines.append(start + " | ".join(_cells(row, ours)) + " |")
    return "\n".join(lines)


def _title(row: dict[str, Any]) -> str:
    if row["package"] == _OURS:
        return "**ours**"
    return f"{PEERS[row['package']].title}, {row['network']}"


def _cells(row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    is_ours = row is ours
    loss = row.get("test_loss")
    cells = [
        f"{np.mean(row['c2st']):.3f}",
        "" if loss is None else f"{loss:.2f}",
        f"{seconds_of(row):.0f}",
        "" if is_ours else f"{seconds_of(row) / seconds_of(ours):.2g}",
    ]
    epochs = None if is_ours or loss is None else epochs_to(ours, loss)
    cells.append(
        "" if epochs is None else f"{seconds_of(row) / seconds_of(ours, epochs):.2g}"
    )
    for name in ("batch_seconds", "sbc_seconds"):
        if name not in row:
            cells.append("")
        elif row[name] is None:
            cells.append("stopped")
        else:
            cells.append(f"{row[name]:.1f} s")
    return [cell or "-" for cell in cells]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the results file, then print the table."""
    args = _parse(arguments)
    for case in (
        Case(task, method, budget, seed)
        for seed in args.seeds
        for budget in args.budgets
        for task in args.tasks
        for method in args.methods
    ):
        done = {
            (row["package"], row["network"])
            for row in read_rows(args.results, **case._asdict())
        }
        wanted = [
            (package, network)
            for package in args.peers
            for network in ENTRIES[case.method].get(package, ())
            if args.networks is None or network in args.networks
        ]
        entries = [entry for entry in wanted if entry not in done]
        if not entries:
            continue
        print(", ".join(map(str, case)), flush=True)
        for row in run_case(case, entries, args.observations, args.num_workers):
            append_row(args.results, row)
            told = row.get("missing") or f"{np.mean(row['c2st']):.3f}"
            print(f"  {row['package']}, {row['network']}: {told}", flush=True)
    print(make_table(read_rows(args.results)))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", choices=ENTRIES, default=("npe", "nle"))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS))
    parser.add_argument("--networks", nargs="+", help="of a peer; all by default")
    parser.add_argument("--budgets", nargs="+", type=int, default=[10_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.jsonl")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
