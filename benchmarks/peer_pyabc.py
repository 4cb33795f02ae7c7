"""Run pyABC's ABC-SMC on two_moons down to a tolerance.

This file is a script for an environment that has pyABC, and needs nothing of this
package:

    python -P benchmarks/peer_pyabc.py particles.npz --observed -0.64 0.16

It uses the defaults of pyABC and its default sampler, which has a process for each
core, with one exception: the tolerances are medians, as by default, but the last is
the one that was asked for instead of one that may be much smaller.  The last line it
prints is a JSON object; the particles and their weights go to the file.  pyABC
cannot be seeded across processes.
"""

import argparse
import json
import logging
import math
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyabc  # type: ignore[import-not-found]

__all__ = ["main"]


class _MedianDownTo(pyabc.MedianEpsilon):  # type: ignore[misc]
    def __init__(self, last: float) -> None:
        super().__init__()
        self._last = last

    def __call__(self, t: int) -> float:
        return max(float(super().__call__(t)), self._last)


def simulate(theta: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Draw one x, as in `sbijax/simulators/two_moons.py`."""
    first, second = theta["theta_1"], theta["theta_2"]
    angle = np.random.uniform(-math.pi / 2.0, math.pi / 2.0)  # noqa: NPY002
    radius = 0.1 + 0.01 * np.random.normal()  # noqa: NPY002
    along = radius * math.cos(angle) + 0.25 - abs(first + second) / math.sqrt(2.0)
    across = radius * math.sin(angle) + (second - first) / math.sqrt(2.0)
    return {"x": np.array([along, across])}


def measure(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The Euclidean distance, unscaled."""
    return float(np.linalg.norm(one["x"] - other["x"]))


def main() -> None:
    """Run, write the particles, print what it took."""
    args = _parse()
    logging.getLogger("ABC").setLevel(logging.WARNING)
    names = ("theta_1", "theta_2")
    prior = pyabc.Distribution(**{name: pyabc.RV("uniform", -1, 2) for name in names})
    abc = pyabc.ABCSMC(
        simulate,
        prior,
        measure,
        population_size=args.population_size,
        eps=_MedianDownTo(args.tolerance),
    )
    with tempfile.TemporaryDirectory() as folder:
        store = "sqlite:///" + os.path.join(folder, "history.db")
        abc.new(store, {"x": np.array(args.observed)})
        start, start_cpu = time.perf_counter(), _cpu_seconds()
        history = abc.run(minimum_epsilon=args.tolerance)
        seconds = time.perf_counter() - start
        cpu_seconds = _cpu_seconds() - start_cpu
        particles, weight = history.get_distribution()
        populations = history.get_all_populations()
        simulations = int(history.total_nr_simulations)
        distance = history.get_weighted_distances()["distance"]
    np.savez(args.particles, theta=particles[list(names)].to_numpy(), weight=weight)
    result: dict[str, Any] = {
        "package": f"pyABC {pyabc.__version__}, numpy {np.__version__}",
        "num_processes": abc.sampler.n_procs,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "num_simulations": simulations,
        "num_populations": len(populations) - 1,  # without that of the first quantile
        "tolerance": float(populations["epsilon"].iloc[-1]),
        "max_distance": float(distance.max()),
        "microseconds_a_simulation": 1e6 * _time_simulator(),
    }
    print(json.dumps(result))


def _time_simulator(num: int = 20_000) -> float:
    """Seconds of one simulation and its distance, without pyABC."""
    theta = {"theta_1": 0.3, "theta_2": -0.2}
    observed = simulate(theta)
    start = time.perf_counter()
    for _ in range(num):
        measure(simulate(theta), observed)
    return (time.perf_counter() - start) / num


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those it has waited for."""
    used = [resource.getrusage(resource.RUSAGE_SELF)]
    used.append(resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("particles", type=Path)
    parser.add_argument("--observed", nargs=2, type=float, required=True)
    parser.add_argument("--population-size", type=int, default=1_000)
    parser.add_argument("--tolerance", type=float, default=0.02)
    return parser.parse_args()


if __name__ == "__main__":
    main()
