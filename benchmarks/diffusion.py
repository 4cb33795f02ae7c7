"""How fast flows draw and evaluate, what few steps lose, what members cost.

    python -m benchmarks.diffusion --methods npse fmpe --seeds 0
    python -m benchmarks.diffusion --no-samplers

For each method: the default estimator is trained on 10,000 simulations of slcp,
then timed after compilation for observation 1.  Draws with few steps are compared
with those of the adaptive solver from the same network (C2ST, 0.5 where nothing is
lost).  The cost of an ensemble is that of some epochs of five members over one.
"""

import argparse
import warnings
from functools import partial
from typing import Any

import jax
import numpy as np

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, spread
from benchmarks.reference import load_reference
from benchmarks.speed import time_call
from sbijax.samplers import ode, sde

__all__ = ["main"]

_METHODS = {"npse": sj.make_npse, "fmpe": sj.make_fmpe}
_NUM_DRAWS = 10_000
_SAMPLERS = {
    "ode, tolerance 1e-3": ode(tolerance=1e-3),
    "ode, tolerance 1e-4": ode(tolerance=1e-4),
    "ddim, 10 steps": sde(num_steps=10, noise=0.0),
    "ddim, 20 steps": sde(num_steps=20, noise=0.0),
    "ddim, 50 steps": sde(num_steps=50, noise=0.0),
    "sde, 20 steps": sde(num_steps=20),
    "sde, 50 steps": sde(num_steps=50),
    "sde, 100 steps": sde(num_steps=100),
    "sde, 400 steps": sde(num_steps=400),
}
_NUM_EPOCHS = 10


def measure(
    method: str, seed: int, num_simulations: int, samplers: dict[str, Any]
) -> dict[str, Any]:
    """Everything about one method, as one row."""
    make, task = _METHODS[method], sj.simulators.slcp()
    keys = jax.random.split(jax.random.key(seed), 5)
    sims = sj.simulate(
        keys[0], task.prior, task.simulator, num_simulations, progress=False
    )
    estimator = make(task.prior)
    params, info = sj.train(keys[1], estimator, sims, progress=False)
    reference = load_reference("slcp", 1)
    x = reference.x_observed

    posterior = sj.infer(estimator, params, x)
    draw = partial(posterior.sample, keys[2], _NUM_DRAWS)
    row: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "num_simulations": num_simulations,
        "num_epochs": int(info.num_epochs),
        "draw": time_call(draw, 5),
    }
    theta = draw()
    log_prob = jax.jit(jax.vmap(posterior.log_prob))
    row["log_prob"] = time_call(lambda: log_prob(theta), 5)

    row["samplers"] = {}
    for name, sampler in samplers.items():
        quick = make(task.prior, sampler=sampler)
        sample = jax.jit(partial(quick.sample, num_samples=_NUM_DRAWS))
        call = partial(sample, params, jax.random.clone(keys[3]), x)
        seconds = time_call(call, 3)["seconds"]
        drawn, report = call()
        row["samplers"][name] = {
            "seconds": float(np.median(seconds)),
            "num_steps": int(report.num_steps),
            "c2st": float(sj.diagnostics.c2st(np.asarray(theta), np.asarray(drawn))),
        }

    warnings.simplefilter("ignore", sj.SbijaxWarning)  # a few epochs are too few
    row["epochs"] = {}
    for num_members in (1, 5):
        several = sj.ensemble(estimator, num_members=num_members)
        train = partial(
            sj.train, keys[4], several, sims, max_epochs=_NUM_EPOCHS, progress=False
        )
        row["epochs"][num_members] = time_call(train, 2)
    return {**row, **environment()}


def print_row(row: dict[str, Any]) -> None:
    """Print what one method took."""
    print(
        f"{row['method']}, seed {row['seed']}, {row['num_simulations']:,} simulations, "
        f"{row['device']}"
    )
    for name, goal in (("draw", "goal 1, better .2"), ("log_prob", "goal 2")):
        seconds = row[name]["seconds"]
        print(f"  {_NUM_DRAWS:,} x {name:9s} {spread(seconds)} s ({goal})")
    if row["samplers"]:
        print("  sampler                seconds   steps  C2ST against the default")
    for name, result in row["samplers"].items():
        print(
            f"  {name:20s} {result['seconds']:9.2f} {result['num_steps']:7d} "
            f"{result['c2st']:6.3f}"
        )
    one, five = (np.median(row["epochs"][n]["seconds"]) for n in (1, 5))
    print(f"  five members over one: {five / one:.2f} times (goal 5, or 2 on a GPU)")


def main() -> None:
    """Measure, print and append to `results/diffusion.jsonl`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=_METHODS, default=["npse"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--no-samplers", action="store_true", help="leave them out")
    args = parser.parse_args()
    samplers = {} if args.no_samplers else _SAMPLERS
    for method in args.methods:
        for seed in args.seeds:
            row = measure(method, seed, args.num_simulations, samplers)
            append_row(RESULTS / "diffusion.jsonl", row)
            print_row(row)


if __name__ == "__main__":
    main()
