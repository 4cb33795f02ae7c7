"""Which standardisation of x and which vector form of theta are the defaults.

    python -m benchmarks.standardization --seeds 0 1

Trains the default NPE on 10,000 simulations with x z-scored or squashed and
theta mapped by numpyro's `biject_to` (`to_real`) or by its cdf and the normal
quantile (`to_normal`), and prints -E log q(theta | x) on 10,000 held-out pairs,
a proper score in the units of theta: lower is better.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, read_rows, spread
from sbijax.priors import to_normal, to_real

__all__ = ["held_out_loss", "main"]

_RATE = dist.TruncatedNormal(1.0, 0.5, low=0.0)
_SLOW_RATE = dist.TruncatedNormal(0.05, 0.05, low=0.0)
_POPULATION = dist.LogNormal(np.log(10.0), 1.0)
_SCALE = dist.LogNormal(-1.0, 1.0)
TASKS: dict[str, Any] = {  # the priors of the built-in tasks
    "two_moons": dist.Uniform(-1.0, 1.0).expand([2]).to_event(1),
    "slcp": dist.Uniform(-3.0, 3.0).expand([5]).to_event(1),
    "lynx_hare": {
        "alpha": _RATE,
        "beta": _SLOW_RATE,
        "gamma": _RATE,
        "delta": _SLOW_RATE,
        "hare_0": _POPULATION,
        "lynx_0": _POPULATION,
        "sigma_hare": _SCALE,
        "sigma_lynx": _SCALE,
    },
}
STANDARDIZERS = {"zscore": sj.networks.zscore, "robust": sj.networks.robust}
BIJECTIONS = {"to_real": to_real, "to_normal": to_normal}
SIZE = 10_000
PATH = RESULTS / "standardization.jsonl"


def held_out_loss(
    task_name: str,
    bijection: Callable[[dist.Distribution], Any],
    standardizer: sj.Standardizer,
    seed: int,
) -> tuple[float, float]:
    """Held-out loss of the default NPE with these choices, and training seconds."""
    prior = sj.make_prior(TASKS[task_name], bijection=bijection)
    simulator = getattr(sj.simulators, task_name)().simulator
    sims_key, test_key, train_key = jax.random.split(jax.random.key(seed), 3)
    sims, test = (
        sj.simulate(key, prior, simulator, SIZE, progress=False)
        for key in (sims_key, test_key)
    )
    npe = sj.make_npe(prior, standardizer=standardizer)
    start = time.perf_counter()
    params, _ = jax.block_until_ready(sj.train(train_key, npe, sims, progress=False))
    seconds = time.perf_counter() - start
    loss = jax.jit(npe.loss)(params, jax.random.key(0), test)
    return float(loss), seconds


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison from the command line; finished rows are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args(arguments)
    done = {
        (r["task"], r["standardizer"], r["bijection"], r["seed"]): r["loss"]
        for r in read_rows(PATH)
    }
    for name, x_name, theta_name, seed in itertools.product(
        options.tasks, STANDARDIZERS, BIJECTIONS, options.seeds
    ):
        if (name, x_name, theta_name, seed) in done:
            continue
        loss, seconds = held_out_loss(
            name,
            BIJECTIONS[theta_name],
            STANDARDIZERS[x_name](),
            seed,
        )
        done[name, x_name, theta_name, seed] = loss
        row = {
            "task": name,
            "standardizer": x_name,
            "bijection": theta_name,
            "seed": seed,
            "loss": round(loss, 4),
            "seconds": round(seconds, 1),
        }
        append_row(PATH, row | environment())
        print(row, flush=True)
    print_table(done)


def print_table(done: dict[tuple[str, str, str, int], float]) -> None:
    """Median and range over seeds of every combination, one row per task."""
    columns = list(itertools.product(STANDARDIZERS, BIJECTIONS))
    print("| task | " + " | ".join(" + ".join(c) for c in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in sorted({key[0] for key in done}):
        cells = []
        for x_name, theta_name in columns:
            losses = [v for k, v in done.items() if k[:3] == (name, x_name, theta_name)]
            cells.append(spread(losses, digits=4) if losses else "not run")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
