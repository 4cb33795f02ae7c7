"""Train sbi's default NLE on given arrays, draw with its default sampler.

This file is a script for an environment that has sbi and torch, and needs
nothing of this package:

    python benchmarks/peer_sbi_nle.py arrays.npz result.json chains.npz --seed 0

`arrays.npz` holds `theta` [N, D] and `x` [N, Dx] to train on, `test_theta`
[M, D] and `test_x` [M, Dx] that nobody trains on, `low` and `high` [D], the
bounds of the uniform prior, and `x_observed` [K, Dx].  Losses are
-log q(x|theta) in nats and in units of x.  The chains [K, C, S, D] of 1,000
draws for each observation go to the second file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import sbi  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from sbi.inference import NLE  # type: ignore[import-not-found]
from sbi.utils import BoxUniform  # type: ignore[import-not-found]

__all__ = ["main"]

NUM_DRAWS = 1_000


def main() -> None:
    """Train, sample, and write the results."""
    args = _parse()
    with np.load(args.arrays) as arrays:
        data = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in arrays.items()}
    torch.manual_seed(args.seed)
    prior = BoxUniform(data["low"], data["high"])
    trainer = NLE(prior=prior, density_estimator="maf", show_progress_bars=False)
    start = time.perf_counter()
    estimator = trainer.append_simulations(data["theta"], data["x"]).train()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        losses = estimator.loss(data["test_x"], data["test_theta"])
    chains, sample_seconds = _draw(trainer.build_posterior(estimator), data)
    np.savez_compressed(args.chains, chains=chains)
    result = {
        "package": f"sbi {sbi.__version__}, torch {torch.__version__}",
        "num_threads": torch.get_num_threads(),
        "seed": args.seed,
        "train_seconds": seconds,
        **_best_epoch(trainer.summary, seconds),
        "test_loss": losses.mean().item(),
        "sample_seconds": sample_seconds,
    }
    args.result.write_text(json.dumps(result))


def _best_epoch(summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The best epoch and the seconds up to it; time outside epochs comes first."""
    durations = np.asarray(summary["epoch_durations_sec"])
    elapsed = seconds - durations.sum() + np.cumsum(durations)
    val_loss = np.asarray(summary["validation_loss"])
    best = int(np.argmin(val_loss))
    return {
        "num_epochs": len(val_loss),
        "best_epoch": best + 1,
        "best_val_loss": float(val_loss[best]),
        "seconds_to_best": float(elapsed[best]),
    }


def _draw(posterior: Any, data: dict[str, Any]) -> tuple[np.ndarray, list[float]]:
    chains, seconds = [], []
    for x in data["x_observed"]:
        start = time.perf_counter()
        draws = posterior.sample((NUM_DRAWS,), x=x, show_progress_bars=False)
        seconds.append(time.perf_counter() - start)
        # The draws are those of one chain after the other.
        chains.append(draws.reshape(posterior.num_chains, -1, draws.shape[-1]).numpy())
    return np.stack(chains), seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("chains", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
