"""The main job: hares and lynxes 1900-1920, from pelt counts to a checked posterior.

    python -m benchmarks.lynx_hare

simulates the Lotka-Volterra model, trains neural posterior estimation on the
log counts, samples the posterior of the real ones and checks it three ways: by
simulation-based calibration and coverage on held-out simulations, by a
posterior predictive check, and, because this likelihood happens to be known,
against exact NUTS.  Figures and `summary.json` land in `results/lynx_hare/`.
"""

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sbijax as sj
from benchmarks.exact_nuts import exact_nuts
from sbijax.training.steps import decay_mask

__all__ = ["main", "run"]

PARAMETERS = {
    "alpha": "birth rate of hares",
    "beta": "hares lost per lynx",
    "gamma": "death rate of lynxes",
    "delta": "lynxes won per hare",
    "hare_0": "hares in 1900",
    "lynx_0": "lynxes in 1900",
    "sigma_hare": "error of hares",
    "sigma_lynx": "error of lynxes",
}
BATCH_SIZE = 1_000
VALIDATION_FRACTION = 0.02
YEARS = np.arange(1900, 1921)
TASK = sj.simulators.lynx_hare()


def simulate_log_counts(key: jax.Array, theta: dict[str, jax.Array]) -> jax.Array:
    """Log counts `[21, 2]`: they span many orders of magnitude under the prior."""
    return jnp.log(TASK.simulator(key, theta))


class CurveAndRest(nn.Module):
    """A summary of the log counts, and the size of what a curve leaves of them.

    The error scales are the size of the residuals around a trajectory that six
    numbers fix.  So a code of `num_code` numbers is decoded to a curve, and the
    logarithm of the mean square of its distance from the counts, one for each
    species, joins the summary.  A network free to draw any smooth curve follows
    slow errors too, and takes the scales for smaller than they are.
    """

    num_outputs: int = 64
    width: int = 256
    num_code: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        v = jnp.ravel(x)
        h = nn.Dense(self.width)(v)
        for _ in range(2):
            r = nn.Dense(self.width)(nn.silu(h))
            h = h + nn.Dense(self.width)(nn.silu(r))
        summary = nn.Dense(self.num_outputs)(nn.silu(h))
        curve = nn.Dense(self.num_code)(summary)
        for _ in range(2):
            curve = nn.silu(nn.Dense(self.width // 2)(curve))
        rest = (v - nn.Dense(v.size)(curve)).reshape(x.shape)
        return jnp.concatenate([summary, jnp.log(1e-3 + jnp.mean(rest**2, axis=0))])


def make_estimator() -> sj.Estimator:
    """NPE with a masked autoregressive flow: this posterior has one smooth mode."""
    return sj.make_npe(
        TASK.prior,
        density=sj.densities.maf(num_layers=4, hidden_size=96),
        embedding=CurveAndRest(),
    )


def make_optimizer(num_steps: int) -> optax.GradientTransformation:
    """Adam with a cosine decay over a run of known length.

    Simulations are cheap here: few passes over many of them do not overfit.
    """
    warmup = min(100, num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.adamw(schedule, weight_decay=0.1, mask=decay_mask),
    )


class Clock:
    """Wall seconds of each stage, with the share that XLA spent compiling."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}
        self._compiled = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compiled += duration

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, and time it."""
        print(f"\n{what}", flush=True)
        start, compiled = time.perf_counter(), self._compiled
        yield
        total, compile_ = time.perf_counter() - start, self._compiled - compiled
        compile_ = min(compile_, total)
        self.seconds[name] = {
            "compile": round(compile_, 2),
            "run": round(total - compile_, 2),
        }
        print(f"  {total:.1f} s, of which {compile_:.1f} s compilation", flush=True)


def run(
    *, num_simulations: int, num_draws: int, max_epochs: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Run all stages and return what `summary.json` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(seed), 7)
    sims_key, train_key, draw_key, held_key, sbc_key, check_key, nuts_key = keys
    clock = Clock()
    x_observed = jnp.log(TASK.x_observed)

    with clock.stage("simulate", f"Simulating {num_simulations:,} populations"):
        sims = sj.simulate(sims_key, TASK.prior, simulate_log_counts, num_simulations)
        num_invalid = int(jnp.sum(sims.weight == 0))

    npe = make_estimator()
    num_steps = max_epochs * math.ceil(
        (1.0 - VALIDATION_FRACTION) * num_simulations / BATCH_SIZE
    )
    with clock.stage("train", "Training neural posterior estimation"):
        params, info = sj.train(
            train_key,
            npe,
            sims,
            batch_size=BATCH_SIZE,
            validation_fraction=VALIDATION_FRACTION,
            max_epochs=max_epochs,
            patience=max_epochs,
            optimizer=make_optimizer(num_steps),
        )
        sj.save(folder / "npe.sbijax", npe, params)

    with clock.stage("sample", f"Drawing {num_draws:,} times from the posterior"):
        draws = sj.infer(npe, params, x_observed).sample(draw_key, num_draws)
        jax.block_until_ready(draws)

    with clock.stage("sbc", "Calibration on 1,000 held-out simulations"):
        held_out = sj.simulate(
            held_key, TASK.prior, simulate_log_counts, 1_000, progress=False
        )
        ranks = sj.diagnostics.sbc(sbc_key, npe, params, held_out, num_samples=1_000)
        covered = sj.diagnostics.coverage(ranks)
    print(sj.diagnostics.sbc_table(ranks))

    with clock.stage("predict", "Posterior predictive check"):
        predictive = sj.diagnostics.posterior_predictive(
            check_key, TASK.simulator, jax.tree.map(lambda leaf: leaf[:2_000], draws)
        )
        inside = _share_inside(predictive, TASK.x_observed)
    print(f"  {inside:.0%} of the real counts lie inside the 90 % predictive band")

    with clock.stage("nuts", "Exact posterior by NUTS, 4 chains"):
        chains, nuts_info = exact_nuts(
            nuts_key, TASK, num_warmup=500, num_samples=1_250, num_chains=4
        )
        exact = jax.tree.map(lambda leaf: leaf.reshape(-1), chains)
    worst = max(float(r) for r in jax.tree.leaves(nuts_info["r_hat"]))
    print(f"  largest R-hat {worst:.4f}, {nuts_info['num_divergent']} divergences")

    with clock.stage("c2st", "Classifier two-sample test of NPE against NUTS"):
        size = len(exact["alpha"])
        head = jax.tree.map(lambda leaf: leaf[:size], draws)
        c2st = sj.diagnostics.c2st(exact, head, num_jobs=2)

    parameters = {name: _moments(draws[name], exact[name]) for name in PARAMETERS}
    _print_table(parameters, c2st)
    with clock.stage("figures", f"Drawing figures into {folder}"):
        _draw_figures(folder, draws, exact, ranks, info, predictive)
    summary = {
        "parameters": parameters,
        "c2st_npe_exact": c2st,
        "sbc_p_values": dict(zip(ranks.names, ranks.p_values.tolist(), strict=True)),
        "coverage": {
            f"{level:.2f}": float(share)
            for level, share in zip(
                covered.nominal, covered.empirical[:, -1], strict=True
            )
        },
        "num_simulations": num_simulations,
        "num_invalid": num_invalid,
        "predictive_inside_90": inside,
        "nuts_max_r_hat": worst,
        "seconds": clock.seconds,
        "seed": seed,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _moments(draws: jax.Array, exact: jax.Array) -> dict[str, float]:
    return {
        "npe_mean": float(draws.mean()),
        "npe_sd": float(draws.std()),
        "exact_mean": float(exact.mean()),
        "exact_sd": float(exact.std()),
    }


def _share_inside(predictive: jax.Array, x_observed: jax.Array) -> float:
    low, high = jnp.quantile(predictive, jnp.array([0.05, 0.95]), axis=0)
    return float(jnp.mean((x_observed >= low) & (x_observed <= high)))


def _print_table(parameters: dict[str, dict[str, float]], c2st: float) -> None:
    print("\nPosterior of the real counts (mean and sd)")
    print(f"  {'':24}{'NPE':>18}{'exact NUTS':>18}{'off by':>10}{'sd ratio':>10}")
    for name, row in parameters.items():
        off = (row["npe_mean"] - row["exact_mean"]) / row["exact_sd"]
        ratio = row["npe_sd"] / row["exact_sd"]
        npe = f"{row['npe_mean']:9.4f} {row['npe_sd']:8.4f}"
        exact = f"{row['exact_mean']:9.4f} {row['exact_sd']:8.4f}"
        label = PARAMETERS[name]
        print(f"  {label:24}{npe:>18}{exact:>18}{off:>+7.2f} sd{ratio:>10.2f}")
    print(f"  C2ST between them: {c2st:.3f} (0.5 is a perfect match, 1 is apart)")


def _draw_figures(
    folder: Path,
    draws: dict[str, jax.Array],
    exact: dict[str, jax.Array],
    ranks: Any,
    info: Any,
    predictive: jax.Array,
) -> None:
    covered = sj.diagnostics.coverage(ranks)
    figures: dict[str, Callable[[], Any]] = {
        "posterior": lambda: sj.plots.pairs(draws, reference=exact),
        "sbc": lambda: sj.plots.sbc_ranks(ranks),
        "coverage": lambda: sj.plots.coverage_curve(covered),
        "loss": lambda: sj.plots.loss_curve(info),
        "predictive": lambda: sj.plots.predictive(
            predictive,
            TASK.x_observed,
            time=YEARS,
            labels=("hares", "lynxes"),
            time_label="year",
            value_label="pelts (thousands)",
        ),
    }
    for name, draw in figures.items():
        draw().savefig(folder / f"{name}.png", dpi=150)
        print(f"  {name}.png")


def main(arguments: list[str] | None = None) -> None:
    """Run the job from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-simulations", type=int, default=1_400_000)
    parser.add_argument("--num-draws", type=int, default=10_000)
    parser.add_argument("--max-epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("results/lynx_hare"))
    options = parser.parse_args(arguments)
    print(
        "Lotka-Volterra population model of the Hudson's Bay Company's pelt counts, "
        "1900 to 1920:\neight parameters, 42 counts."
    )
    start = time.perf_counter()
    run(
        num_simulations=options.num_simulations,
        num_draws=options.num_draws,
        max_epochs=options.max_epochs,
        seed=options.seed,
        folder=options.folder,
    )
    print(f"\nDone in {time.perf_counter() - start:.0f} s: see {options.folder}/")


if __name__ == "__main__":
    main()
