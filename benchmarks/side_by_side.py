"""How much sooner than sbi's ours reaches the same loss, on one machine.

    python -m benchmarks.side_by_side --peer-python /path/to/python --seeds 0 1 2
    python -m benchmarks.side_by_side --method fmpe --peer-python /path/to/python

The method is the default NPE or FMPE of either package.  Both train on the same
10,000 slcp simulations, one after the other in one run, each in a fresh process.
The yardstick is the mean of -log q(theta|x) in units of theta over held-out
simulations that neither sees: 10,000, or 2,000 for FMPE, where each is the solution
of a differential equation.  sbi trains until it stops; its best network sets the
target.  Ours is then trained with the `max_epochs` that just reaches the target; the
seconds are those of that whole `sj.train` call, compilation included.  They are
divided into the seconds sbi took up to its best epoch, which leaves out the 20
epochs of patience after it.

sbi's density leaks out of the prior.  The second target is the loss after
dividing by the mass inside, as sbi's posterior does; it is the harder one.
"""

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

import sbijax as sj
from benchmarks.common import RESULTS, append_row, environment, run_fresh, spread

__all__ = ["main", "make_arrays", "race", "run_peer", "train_ours"]

_JITTER = 1e-6  # added to both variances, as in the definition
_METHODS = {"npe": sj.make_npe, "fmpe": sj.make_fmpe}
_NUM_TESTS = {"npe": 10_000, "fmpe": 2_000}


def simulate_slcp(
    rng: np.random.Generator, num_simulations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Simple likelihood, complex posterior, by its definition, in numpy.

    Args:
        rng: source of randomness.
        num_simulations: number of rows.

    Returns:
        theta `[N, 5]`, uniform on (-3, 3), and x `[N, 8]`: four points from a
        normal with mean (theta_1, theta_2), standard deviations theta_3^2 and
        theta_4^2 and correlation tanh(theta_5).
    """
    theta = rng.uniform(-3.0, 3.0, (num_simulations, 5))
    sd_1, sd_2 = theta[:, 2:3] ** 2, theta[:, 3:4] ** 2
    l11 = np.sqrt(sd_1**2 + _JITTER)
    l21 = np.tanh(theta[:, 4:]) * sd_1 * sd_2 / l11
    l22 = np.sqrt(sd_2**2 + _JITTER - l21**2)
    noise = rng.standard_normal((2, num_simulations, 4))
    first = theta[:, :1] + l11 * noise[0]
    second = theta[:, 1:2] + l21 * noise[0] + l22 * noise[1]
    x = np.stack([first, second], axis=-1).reshape(num_simulations, 8)
    return theta.astype(np.float32), x.astype(np.float32)


def make_arrays(path: Path, seed: int, num_tests: int) -> None:
    """Write what both packages read: training rows, held-out rows, prior bounds."""
    theta, x = simulate_slcp(np.random.default_rng([seed, 0]), 10_000)
    test_theta, test_x = simulate_slcp(np.random.default_rng([seed, 1]), num_tests)
    np.savez(
        path,
        theta=theta,
        x=x,
        test_theta=test_theta,
        test_x=test_x,
        low=np.full(5, -3.0),
        high=np.full(5, 3.0),
    )


def run_peer(python: Path, method: str, arrays: Path, seed: int) -> dict[str, Any]:
    """Train sbi's default in its own environment, see `peer_sbi.py`."""
    script = Path(__file__).with_name("peer_sbi.py").resolve()
    result = arrays.with_name("peer.json")
    command = [python.absolute(), script, arrays, result, "--method", method]
    command += ["--seed", str(seed)]
    subprocess.run([*map(str, command)], check=True, cwd=arrays.parent)
    return dict(json.loads(result.read_text()))


def train_ours(
    method: str, arrays: Path, seed: int, max_epochs: int | None
) -> dict[str, Any]:
    """Train the default; say how long it took and how well it does.

    Args:
        method: "npe" or "fmpe".
        arrays: file of `make_arrays`.
        seed: seed of the weights, the split and the shuffling.
        max_epochs: stop there, or the default if None.

    Returns:
        Seconds of the `sj.train` call, epochs run, validation loss and the
        held-out losses `[M]`.
    """
    data = np.load(arrays)
    prior = sj.make_prior(dist.Uniform(data["low"], data["high"]).to_event(1))
    estimator = _METHODS[method](prior)
    sims = jax.block_until_ready(sj.make_simulations(data["theta"], data["x"]))
    train = partial(sj.train, jax.random.key(seed), estimator, sims, progress=False)
    if max_epochs is not None:  # its warning that the loss still falls is no news
        warnings.simplefilter("ignore", sj.SbijaxWarning)
        train = partial(train, max_epochs=max_epochs)
    start, start_cpu = time.perf_counter(), time.process_time()
    params, info = jax.block_until_ready(train())
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    assert estimator.log_prob is not None
    log_prob = jax.jit(jax.vmap(estimator.log_prob, in_axes=(None, 0, 0)))
    losses = -np.asarray(log_prob(params, data["test_theta"], data["test_x"]))
    return {
        "max_epochs": max_epochs,
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "num_epochs": int(info.num_epochs),
        "best_val_loss": float(info.best_loss),
        "val_loss": np.asarray(info.val_loss)[: int(info.num_epochs)].tolist(),
        "test_loss": float(losses.mean()),
        "test_losses": losses.tolist(),
    }


def race(
    target: float, method: str, arrays: Path, seed: int, default: dict[str, Any]
) -> dict[str, Any] | None:
    """Time a training that is just long enough to reach a held-out loss.

    Training with `max_epochs` follows the same path as the default training up
    to there, so for NPE the validation losses of that one say where to try first.

    Args:
        target: loss in nats.
        method: "npe" or "fmpe".
        arrays: file of `make_arrays`.
        seed: seed of our training.
        default: the default training with the same seed.

    Returns:
        The training that reached it, None if the default one does not.
    """
    if default["test_loss"] > target:
        return None
    max_epochs = 2
    if method == "npe":
        offset = default["test_loss"] - default["best_val_loss"]
        reached = np.minimum.accumulate(default["val_loss"]) + offset <= target
        max_epochs = int(np.argmax(reached)) + 1
    run: dict[str, Any] = run_fresh(train_ours, method, arrays, seed, max_epochs)
    while run["test_loss"] > target and max_epochs < default["num_epochs"]:
        max_epochs += 1 + max_epochs // 10
        run = run_fresh(train_ours, method, arrays, seed, max_epochs)
    return run


def compare(python: Path, method: str, seed: int) -> dict[str, Any]:
    """One seed: the peer, our default training, and the two races, as one row."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        make_arrays(arrays, seed, _NUM_TESTS[method])
        peer = run_peer(python, method, arrays, seed)
        default = run_fresh(train_ours, method, arrays, seed, None)
        races = {
            name: race(peer[name], method, arrays, seed, default)
            for name in ("test_loss", "test_loss_renormalised")
        }
    difference = np.subtract(default["test_losses"], peer["test_losses"])
    long = ("test_losses", "epoch_seconds", "train_loss", "val_loss")
    return {
        "method": method,
        "seed": seed,
        **environment(),
        "peer": {k: v for k, v in peer.items() if k not in long},
        "default": {k: v for k, v in default.items() if k not in long},
        "difference": float(difference.mean()),
        "difference_sem": float(difference.std() / np.sqrt(difference.size)),
        "races": {
            name: run and {k: v for k, v in run.items() if k not in long}
            for name, run in races.items()
        },
    }


def print_row(row: dict[str, Any]) -> None:
    """Print one seed; CPU seconds suffer less from what else the machine does."""
    peer, default = row["peer"], row["default"]
    print(f"{row['method']}, seed {row['seed']}")
    print(
        f"  sbi: held-out loss {peer['test_loss']:.3f}, "
        f"{peer['test_loss_renormalised']:.3f} renormalised "
        f"({peer['mass_inside_prior']:.0%} of its mass inside the prior); "
        f"best epoch {peer['best_epoch']} of {peer['num_epochs']} after "
        f"{peer['seconds_to_best']:.1f} s of {_seconds(peer)}"
    )
    print(
        f"  ours, default training: held-out loss {default['test_loss']:.3f} "
        f"({row['difference']:+.3f}, standard error {row['difference_sem']:.3f}), "
        f"{default['num_epochs']} epochs, {_seconds(default)}, "
        f"{peer['train_seconds'] / default['train_seconds']:.1f} times sooner done"
    )
    for name, run in row["races"].items():
        label = f"  ours to sbi's {name} {peer[name]:.3f}:"
        if run is None:
            print(label, "not reached")
            continue
        print(
            f"{label} {run['test_loss']:.3f} with max_epochs {run['max_epochs']} "
            f"in {_seconds(run)}, "
            f"{peer['seconds_to_best'] / run['train_seconds']:.1f} times sooner"
        )


def _seconds(run: dict[str, Any]) -> str:
    return f"{run['train_seconds']:.1f} s ({run['train_cpu_seconds']:.0f} CPU s)"


def main() -> None:
    """Run all seeds, print them and add them to the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--method", choices=_METHODS, default="npe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "side_by_side.jsonl")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        rows.append(compare(args.peer_python, args.method, seed))
        append_row(args.results, rows[-1])
        print_row(rows[-1])
    for name in ("test_loss", "test_loss_renormalised"):
        pairs = [(row["peer"], row["races"][name]) for row in rows]
        ratios = [p["seconds_to_best"] / r["train_seconds"] for p, r in pairs if r]
        if ratios:
            print(f"times sooner to {name}, median (range): {spread(ratios)}")


if __name__ == "__main__":
    main()
