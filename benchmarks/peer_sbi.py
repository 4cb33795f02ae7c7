"""Train sbi's default NPE or FMPE on given arrays; record what it reached, and when.

This file is a script for an environment that has sbi and torch, and needs
nothing of this package:

    python benchmarks/peer_sbi.py arrays.npz result.json --method npe --seed 0

`arrays.npz` holds `theta` [N, D] and `x` [N, Dx] to train on, `test_theta`
[M, D] and `test_x` [M, Dx] that nobody trains on, `low` and `high` [D], the
bounds of the uniform prior, and optionally `x_observed` [K, Dx].  sbi writes a
log folder into the working directory, so run it in a temporary one.

All held-out losses are -log q(theta|x) in nats and in units of theta, for FMPE by
sbi's own neural ODE.  `checks` in the result of NPE shows that the validation loss
that sbi reports is the same; that of FMPE is a regression error.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

_START = time.perf_counter()

import numpy as np  # noqa: E402
import sbi  # type: ignore[import-not-found]  # noqa: E402
import torch  # type: ignore[import-not-found]  # noqa: E402
from sbi.inference import FMPE, NPE  # type: ignore[import-not-found]  # noqa: E402
from sbi.utils import BoxUniform  # type: ignore[import-not-found]  # noqa: E402

_IMPORT_SECONDS = time.perf_counter() - _START

__all__ = ["main"]


def main() -> None:
    """Train, measure and write the result."""
    args = _parse()
    with np.load(args.arrays) as arrays:
        data = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in arrays.items()}
    torch.manual_seed(args.seed)
    prior = BoxUniform(data["low"], data["high"])
    if args.method == "npe":
        trainer = NPE(prior=prior, density_estimator="maf", show_progress_bars=False)
    else:
        trainer = FMPE(prior=prior, show_progress_bars=False)
    start, start_cpu = time.perf_counter(), time.process_time()
    estimator = trainer.append_simulations(data["theta"], data["x"]).train()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    result = {
        "package": f"sbi {sbi.__version__}, torch {torch.__version__}",
        "num_threads": torch.get_num_threads(),
        "seed": args.seed,
        "import_seconds": _IMPORT_SECONDS,
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        **_history(trainer, seconds),
        **_held_out(_Density(args.method, trainer, estimator), data, prior),
    }
    if args.method == "npe":
        result["checks"] = _check_units(trainer, estimator, data)
    if "x_observed" in data and args.draws is not None:
        result["sample_seconds"] = _save_draws(trainer, estimator, data, args)
    args.result.write_text(json.dumps(result))


def _history(trainer: Any, seconds: float) -> dict[str, Any]:
    """Losses and cumulative seconds per epoch; time outside epochs comes first."""
    summary = trainer.summary
    durations = np.asarray(summary["epoch_durations_sec"])
    elapsed = seconds - durations.sum() + np.cumsum(durations)
    val_loss = np.asarray(summary["validation_loss"])
    best = int(np.argmin(val_loss))
    return {
        "num_epochs": len(val_loss),
        "best_epoch": best + 1,
        "best_val_loss": float(val_loss[best]),
        "seconds_to_best": float(elapsed[best]),
        "epoch_seconds": elapsed.tolist(),
        "train_loss": list(summary["training_loss"]),
        "val_loss": val_loss.tolist(),
    }


class _Density:
    """What both methods can do: losses of pairs, and draws for several x."""

    def __init__(self, method: str, trainer: Any, estimator: Any) -> None:
        self.estimator = estimator
        self.ode = None
        if method == "fmpe":
            posterior = trainer.build_posterior(estimator)
            self.ode = posterior.potential_fn.neural_ode

    def loss(self, theta: Any, x: Any) -> Any:
        if self.ode is None:
            return self.estimator.loss(theta, x)
        return -self.ode(x).log_prob(theta)

    def sample(self, size: int, x: Any) -> Any:
        if self.ode is None:
            return self.estimator.sample((size,), condition=x)
        return self.ode(x).sample((size,))


@torch.no_grad()
def _held_out(density: _Density, data: dict[str, Any], prior: Any) -> dict[str, Any]:
    """Loss of the best network on the held-out rows, as it is and renormalised.

    sbi's density puts mass outside the prior and its posterior corrects for it:
    the second figure divides q(theta|x) by its mass inside, estimated with 1,000
    draws for each of the first 500 rows (50 where draws are solutions of an ODE).
    """
    parts = data["test_theta"].split(1_000), data["test_x"].split(1_000)
    losses = torch.cat([density.loss(*rows) for rows in zip(*parts, strict=True)])
    num_rows = 500 if density.ode is None else 50
    draws = density.sample(1_000, data["test_x"][:num_rows])
    inside = prior.support.check(draws).float().mean(0).clamp(min=1e-3)
    log_inside = inside.log().mean().item()
    return {
        "test_loss": losses.mean().item(),
        "test_loss_sem": losses.std().item() / math.sqrt(len(losses)),
        "test_losses": losses.tolist(),
        "mass_inside_prior": inside.mean().item(),
        "test_loss_renormalised": losses.mean().item() + log_inside,
    }


def _check_units(trainer: Any, estimator: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Show in which space the reported validation loss lives.

    The loss is recomputed on the validation rows by `estimator.loss`, and for
    100 of them from first principles: base density plus the log-determinant of
    the Jacobian d z / d theta, by autograd, theta in its own units.  The log-det
    of the z-scoring alone is what a loss in standardised units would differ by.
    (`inverse_transform` does not apply the embedding of x, which z-scores it.)
    """
    rows = trainer.val_indices
    theta, x = data["theta"][rows], data["x"][rows]
    with torch.no_grad():
        recomputed = estimator.loss(theta, x).mean().item()
        direct = -estimator.loss(theta[:100], x[:100])
        embedded = estimator.embedding_net(x[:100])
    by_hand = []
    for one_theta, context in zip(theta[:100], embedded, strict=True):

        def to_base(value: Any, context: Any = context) -> Any:
            return estimator.inverse_transform(value[None], context[None])[0]

        z = to_base(one_theta).detach()
        jacobian = torch.autograd.functional.jacobian(to_base, one_theta)
        log_base = -0.5 * (z**2).sum() - 0.5 * len(z) * math.log(2 * math.pi)
        by_hand.append(log_base + torch.linalg.slogdet(jacobian)[1])
    errors = (direct - torch.stack(by_hand)).abs()
    return {
        "reported_best_val_loss": float(trainer.summary["best_validation_loss"][-1]),
        "recomputed_val_loss": recomputed,
        "max_error_against_jacobian": errors.max().item(),
        "log_det_of_theta_z_score": -data["theta"].std(0).log().sum().item(),
    }


def _save_draws(
    trainer: Any, estimator: Any, data: dict[str, Any], args: argparse.Namespace
) -> float:
    """Save 10,000 draws per observation to `args.draws`; return the seconds."""
    posterior = trainer.build_posterior(estimator)
    start = time.perf_counter()
    draws = [
        posterior.sample((10_000,), x=x, show_progress_bars=False).numpy()
        for x in data["x_observed"]
    ]
    seconds = time.perf_counter() - start
    np.savez_compressed(args.draws, draws=np.stack(draws))
    return seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--method", choices=("npe", "fmpe"), default="npe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=Path, help="file for draws at x_observed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
