"""Simulators that are not JAX and the store: overhead, throughput, kills.

    python -m benchmarks.executors --kills 20

Every figure includes the start of the workers and the compilation of the prior, but
not the import of JAX and sbijax.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

import sbijax as sj
from benchmarks.common import RESULTS, environment, run_fresh, spread

__all__ = ["count_lost", "main", "time_simulate"]

_CHUNK_SIZE = 200


def sleeping(rng: np.random.Generator, theta: Any) -> Any:
    time.sleep(0.01)
    return theta + rng.normal()


def busy(rng: np.random.Generator, theta: Any) -> Any:
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass
    return theta + rng.normal()


def microsecond(rng: np.random.Generator, theta: Any) -> Any:
    """About a microsecond for each draw of a batch `[B]`."""
    steps = rng.standard_normal((len(theta), 40), np.float32)
    return theta + steps.cumsum(axis=1)[:, -1]


def time_simulate(name: str, size: int, batch_size: int | None) -> dict[str, float]:
    """Seconds of `simulate` in a fresh process, and of the function by itself."""
    function = globals()[name]
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    rng, theta = np.random.default_rng(0), np.zeros(batch_size or (), np.float32)
    num_calls = 20
    start = time.perf_counter()
    for _ in range(num_calls):
        function(rng, theta)
    alone = (time.perf_counter() - start) / num_calls / (batch_size or 1)
    simulator = sj.python_simulator(function, batch_size=batch_size)
    start = time.perf_counter()
    sims = sj.simulate(jax.random.key(0), prior, simulator, size, progress=False)
    seconds = time.perf_counter() - start
    assert bool((sims.weight == 1.0).all())
    return {"seconds": seconds, "seconds_per_draw_alone": alone}


def run_kind(kind: str, size: int, path: str, log: str) -> None:
    """Simulate into a store; `log` grows by a byte for each draw that is made."""
    prior = sj.make_prior(dist.Normal(0.0, 1.0))

    def write(num: int) -> None:
        with open(log, "ab") as file:
            file.write(b"." * num)

    def slow_write(x: Any) -> None:
        time.sleep(0.001)
        write(1)

    def python(rng: np.random.Generator, theta: Any) -> Any:
        time.sleep(0.004)
        x = theta + rng.normal(size=20)
        write(1)
        return x

    def compiled(key: Any, theta: Any) -> Any:
        noise = jax.random.normal(key, (20,))
        x = theta + noise
        jax.debug.callback(slow_write, x[0])
        return x

    simulator = sj.python_simulator(python) if kind == "python" else compiled
    sj.simulate(
        jax.random.key(0),
        prior,
        simulator,
        size,
        chunk_size=_CHUNK_SIZE,
        store=path,
        progress=False,
    )


def count_lost(kind: str, size: int, num_kills: int, seed: int) -> dict[str, Any]:
    """Kill a run at random moments, and compare what it ends with with one that lived.

    `lost` has, for each kill, the draws that were made and are not in the store.
    """
    rng, lost, done = random.Random(seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "sims", Path(folder) / "log"
        log.touch()
        for _ in range(num_kills):
            made, kept = log.stat().st_size, _num_stored(path)
            process = _start(kind, size, path, log)
            early = rng.random() < 0.2  # some before the first draw is made
            while not early and log.stat().st_size == made:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 2.0))
            process.kill()
            process.wait()
            time.sleep(0.5)  # its workers end
            done.append(_num_stored(path))
            lost.append(log.stat().st_size - made - (done[-1] - kept))
            if done[-1] == size:
                raise RuntimeError("all is done before the last kill; raise --sizes")
        _start(kind, size, path, log).wait()
        whole = Path(folder) / "whole"
        _start(kind, size, whole, Path(folder) / "log2").wait()
        pairs = zip(
            jax.tree.leaves(sj.open_simulations(path).load()),
            jax.tree.leaves(sj.open_simulations(whole).load()),
            strict=True,
        )
        differ = sum(not np.array_equal(a, b) for a, b in pairs)
        shutil.rmtree(whole)
    return {"lost": lost, "done": done, "arrays_that_differ": differ}


def measure_speed(repeats: int) -> dict[str, Any]:
    """Overhead of draws of 10 ms, and throughput of cheap ones."""
    num_workers = len(os.sched_getaffinity(0))
    content: dict[str, Any] = {"num_workers": num_workers}
    for name in ("sleeping", "busy"):
        runs = [run_fresh(time_simulate, name, 2_000, None) for _ in range(repeats)]
        ideal = 2_000 * 0.01 / num_workers
        ratios = [run["seconds"] / ideal for run in runs]
        content[name] = runs
        print(f"2,000 draws of 10 ms ({name}), {num_workers} workers, over the ideal")
        print(f"  {ideal:g} s: {spread(ratios)} times; goal 1.15, better 1.05")
    runs = [
        run_fresh(time_simulate, "microsecond", 5_000_000, 1_000)
        for _ in range(repeats)
    ]
    content["microsecond"] = runs
    alone = spread([1e6 * run["seconds_per_draw_alone"] for run in runs])
    rates = spread([5 / run["seconds"] for run in runs])
    print(f"draws in batches of 1,000, {alone} microseconds each by themselves")
    print(f"  {rates} million draws a second; goal 1")
    return content


def measure_kills(num_kills: int, sizes: list[int]) -> dict[str, Any]:
    """Kills of a Python and of a JAX simulator that write to a store."""
    content = {}
    for kind, size in zip(("python", "compiled"), sizes, strict=True):
        result = count_lost(kind, size, num_kills, seed=0)
        content[f"kills_{kind}"] = result
        print(f"{num_kills} kills of a {kind} simulator, chunks of {_CHUNK_SIZE} draws")
        print(f"  most draws lost by one: {max(result['lost'])}; goal: one chunk")
        print(f"  arrays that differ: {result['arrays_that_differ']}; goal 0")
    return content


def _start(kind: str, size: int, path: Path, log: Path) -> subprocess.Popen:
    program = (
        "from benchmarks.executors import run_kind; "
        f"run_kind({kind!r}, {size}, {str(path)!r}, {str(log)!r})"
    )
    return subprocess.Popen([sys.executable, "-c", program], env=os.environ)


def _num_stored(path: Path) -> int:
    try:
        return len(sj.open_simulations(path))
    except FileNotFoundError:
        return 0


def main() -> None:
    """Measure, print, and write `results/executors.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--sizes",
        nargs=2,
        type=int,
        default=[15_000, 30_000],
        help="draws to kill among: Python, JAX",
    )
    parser.add_argument("--only", choices=["speed", "kills"])
    args = parser.parse_args()
    path = RESULTS / "executors.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    content["environment"] = environment()
    if args.only != "kills":
        content |= measure_speed(args.repeats)
    if args.only != "speed":
        content |= measure_kills(args.kills, args.sizes)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
