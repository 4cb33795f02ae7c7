"""How long the things take that people wait for; the figures of `make bench`.

    python -m benchmarks.speed --seeds 0 1 2

Compilation is kept apart from running: the first call is reported as such, and
the others are repeated.  Import times are of fresh interpreters.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import RESULTS, environment, spread
from sbijax.base import Estimator, Params

__all__ = ["main", "time_call", "time_import"]

# sbijax loads its names on first use; the last two also load what a name needs.
PROGRAMS = {
    "import jax": "import jax",
    "import sbijax": "import sbijax",
    "import jax, sbijax; all for NPE": (
        "import jax, sbijax as sj; "
        "sj.make_prior, sj.simulate, sj.make_npe, sj.train, sj.infer"
    ),
    "import jax, sbijax; every name": (
        "import jax, sbijax as sj; [getattr(sj, name) for name in sj.__all__]"
    ),
}

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def time_call(function: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of the first call, and wall and CPU seconds of `repeats` more."""
    seconds, cpu_seconds = [], []
    for _ in range(repeats + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    return {"first": seconds[0], "seconds": seconds[1:], "cpu_seconds": cpu_seconds[1:]}


def time_import(repeats: int) -> dict[str, list[float]]:
    """Seconds of `PROGRAMS` in turn, each in a fresh interpreter."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repeat in range(repeats + 1):
        for name, program in PROGRAMS.items():
            timed = (
                "import time; start = time.perf_counter(); "
                f"{program}; print(time.perf_counter() - start)"
            )
            command = [sys.executable, "-c", timed]
            output = subprocess.run(command, check=True, capture_output=True, text=True)
            if repeat:  # the first round writes compiled files
                seconds[name].append(float(output.stdout))
    return seconds


def count_compilations() -> Callable[[], int]:
    """Return a function that says how many programs were compiled since now."""
    events = []

    def listen(event: str, duration_secs: float, **metadata: str | int) -> None:
        if event == _COMPILE_EVENT:
            events.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(events)


def train_two_moons(seed: int) -> tuple[Estimator, Params, dict[str, Any]]:
    """Train twice on data of the same shapes; say what the second call compiled."""
    task = sj.simulators.two_moons()
    keys = jax.random.split(jax.random.key(seed), 4)
    npe = sj.make_npe(task.prior)
    seconds, compiled = [], []
    for key_sims, key_train in (keys[:2], keys[2:]):
        sims = sj.simulate(key_sims, task.prior, task.simulator, 10_000, progress=False)
        jax.block_until_ready(sims)
        count = count_compilations()
        start = time.perf_counter()
        params, _ = jax.block_until_ready(
            sj.train(key_train, npe, sims, progress=False)
        )
        seconds.append(time.perf_counter() - start)
        compiled.append(count())
    return npe, params, {"seconds": seconds, "compiled": compiled}


def time_posterior(npe: Estimator, params: Params, seed: int) -> dict[str, Any]:
    """1,000 observations x 1,000 draws in one vmapped call, and SBC of as many."""
    task = sj.simulators.two_moons()
    key_sims, key_draws, key_sbc = jax.random.split(jax.random.key(seed + 1000), 3)
    sims = sj.simulate(key_sims, task.prior, task.simulator, 1_000, progress=False)
    keys = jax.random.split(key_draws, 1_000)
    batch = jax.vmap(lambda k, x: sj.infer(npe, params, x).sample(k, 1_000))
    compiled = jax.jit(batch)
    return {
        "vmap": time_call(lambda: batch(keys, sims.x), 5),
        "jit_vmap": time_call(lambda: compiled(keys, sims.x), 5),
        "sbc": time_call(
            lambda: sj.diagnostics.sbc(key_sbc, npe, params, sims, num_samples=1_000), 5
        ),
    }


def main() -> None:
    """Measure, print, and write `results/speed.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--import-repeats", type=int, default=9)
    args = parser.parse_args()
    imports = time_import(args.import_repeats)
    print("import: median (range) of seconds; times as long as jax, goal 4, better 2")
    for name, seconds in imports.items():
        ratio = np.median(seconds) / np.median(imports["import jax"])
        print(f"  {name:38s} {spread(seconds)}; {ratio:.2f}")
    runs = {}
    for seed in args.seeds:
        npe, params, training = train_two_moons(seed)
        runs[seed] = {"training": training, **time_posterior(npe, params, seed)}
        print(f"seed {seed}: seconds of the first call, then of more: median (range)")
        first, second = training["seconds"]
        print(f"  {'train, 10,000 simulations':38s} {first:.3g}, {second:.3g}")
        label = "programs compiled by the second train"
        print(f"  {label:38s} {training['compiled'][1]}")
        for name, label in (
            ("vmap", "1,000 x 1,000 draws, goal 2, better .5"),
            ("jit_vmap", "the same under jax.jit"),
            ("sbc", "SBC 1,000 x 1,000, goal 5, better 1"),
        ):
            result = runs[seed][name]
            print(
                f"  {label:38s} {result['first']:.3g}, {spread(result['seconds'])}; "
                f"CPU {spread(result['cpu_seconds'])}"
            )
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment(), "import": imports, "seeds": runs}
    (RESULTS / "speed.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
