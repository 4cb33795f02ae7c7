"""Train one method of one package on given arrays, draw, and time each part.

This file is a script for an environment that has the package in question, and needs
nothing else but numpy:

    python -P benchmarks/peer_pipeline.py sbi npe nsf arrays.npz result.json draws.npz

`arrays.npz` holds `theta` [N, D] and `x` [N, Dx] to train on, `test_theta` [M, D] and
`test_x` [M, Dx] that nobody trains on, `x_observed` [K, Dx], and the prior: `low` and
`high` [D] of a uniform one, or `loc` and `scale` [D] of a normal one.  Everything that
is not named is the package's default.  10,000 draws for each observation [K, S, D] go
to `draws.npz`.

`ours` runs in this project's environment; the other JAX package called sbijax in its
own, hence no import of it at the top.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["main"]

NUM_DRAWS = 10_000
NUM_BATCH = (1_000, 1_000)  # observations, draws for each
NUM_SBC = (200, 500)  # replicates, draws for each
MAX_SECONDS = 60  # for a batch, where draws outside the prior are thrown away

Arrays = Mapping[str, np.ndarray]


class Pipeline(NamedTuple):
    """What a package can do, from arrays to arrays.

    `train() -> trained`; `draw(trained, x [Dx], S) -> [S, D]`;
    `loss(trained, theta [M, D], x [M, Dx]) -> [M]`, -log q(theta|x) or -log q(x|theta);
    `draw_batch(trained, xs [K, Dx], S) -> [K, S, D]` for methods without MCMC; it may
    raise TimeoutError.
    """

    version: str
    train: Callable[[], Any]
    draw: Callable[[Any, np.ndarray, int], np.ndarray]
    loss: Callable[[Any, np.ndarray, np.ndarray], np.ndarray] | None
    draw_batch: Callable[[Any, np.ndarray, int], np.ndarray] | None = None
    history: dict[str, Any] | None = None  # more to record, filled by `train`


def make_ours(method: str, network: str, data: Arrays, seed: int) -> Pipeline:
    """The estimators of this project; the network is always its default."""
    import jax
    import numpyro.distributions as dist

    import sbijax as sj

    prior = sj.make_prior(
        dist.Uniform(data["low"], data["high"]).to_event(1)
        if "low" in data
        else dist.Normal(data["loc"], data["scale"]).to_event(1)
    )
    estimator = getattr(sj, f"make_{method}")(prior)
    keys = iter(jax.random.split(jax.random.key(seed), 1_000))
    history: dict[str, Any] = {}
    compiling = [0.0]

    def listen(event: str, duration_secs: float, **metadata: str | int) -> None:
        # Without tracing, which would count programs that others call twice.
        if event.endswith(
            ("jaxpr_to_mlir_module_duration", "backend_compile_duration")
        ):
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def train() -> Any:
        sims = sj.make_simulations(data["theta"], data["x"])
        params, info = sj.train(next(keys), estimator, sims, progress=False)
        history["compile_seconds"] = sum(compiling)
        history["val_loss"] = np.asarray(info.val_loss)[: int(info.num_epochs)].tolist()
        return params

    def draw(params: Any, x: np.ndarray, num_draws: int) -> np.ndarray:
        posterior = sj.infer(estimator, params, x)
        return np.asarray(posterior.sample(next(keys), num_draws))

    score = estimator.log_likelihood if method == "nle" else estimator.log_prob
    mapped = jax.jit(jax.vmap(score, (None, 0, 0)))

    def draw_batch(params: Any, xs: np.ndarray, num_draws: int) -> np.ndarray:
        def one(key: Any, x: Any) -> Any:
            return sj.infer(estimator, params, x).sample(key, num_draws)

        return np.asarray(
            jax.jit(jax.vmap(one))(jax.random.split(next(keys), len(xs)), xs)
        )

    return Pipeline(
        f"sbijax-functional {version('sbijax-functional')}, jax {jax.__version__}",
        train,
        draw,
        None
        if method == "nre"
        else lambda params, *pair: -np.asarray(mapped(params, *pair)),
        draw_batch if method in ("npe", "fmpe", "npse") else None,
        history,
    )


def make_sbi(method: str, network: str, data: Arrays, seed: int) -> Pipeline:
    """sbi: `network` is one of its density estimators, "default" where it has one."""
    import sbi
    import torch
    from sbi import inference, utils

    torch.manual_seed(seed)
    tensors = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in data.items()}
    if "low" in data:
        prior = utils.BoxUniform(tensors["low"], tensors["high"])
    else:
        normal = torch.distributions.Normal(tensors["loc"], tensors["scale"])
        prior = torch.distributions.Independent(normal, 1)
    options = {"prior": prior, "show_progress_bars": False}
    if method in ("npe", "nle"):
        options["density_estimator"] = network
    trainer = getattr(inference, method.upper())(**options)
    quiet = {"show_progress_bars": False}

    def train() -> Any:
        estimator = trainer.append_simulations(tensors["theta"], tensors["x"]).train()
        return estimator, trainer.build_posterior(estimator)

    def draw(trained: Any, x: np.ndarray, num_draws: int) -> np.ndarray:
        x = torch.as_tensor(x, dtype=torch.float32)
        return trained[1].sample((num_draws,), x=x, **quiet).numpy()

    @torch.no_grad()
    def loss(trained: Any, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        pair = torch.as_tensor(theta), torch.as_tensor(x)
        if method == "nle":
            return trained[0].loss(pair[1], pair[0]).numpy()
        # The posterior is the density divided by its mass inside the prior.
        losses = trained[0].loss(*pair).numpy()
        if "low" not in data:
            return losses
        draws = trained[0].sample((1_000,), condition=pair[1][:500])
        inside = prior.support.check(draws).float().mean(0).clamp(min=1e-3)
        return losses + inside.log().mean().item()

    def draw_batch(trained: Any, xs: np.ndarray, num_draws: int) -> np.ndarray:
        xs = torch.as_tensor(xs, dtype=torch.float32)
        options = {**quiet, "max_sampling_time": MAX_SECONDS}
        try:
            draws = trained[1].sample_batched((num_draws,), x=xs, **options)
        except RuntimeError as error:
            if "max_sampling_time" in str(error):
                raise TimeoutError from error
            raise
        return draws.movedim(1, 0).numpy()

    return Pipeline(
        f"sbi {sbi.__version__}, torch {torch.__version__}",
        train,
        draw,
        loss if method in ("npe", "nle") else None,
        draw_batch if method in ("npe", "fmpe") else None,
    )


def make_sbijax_pypi(method: str, network: str, data: Arrays, seed: int) -> Pipeline:
    """The package that PyPI calls sbijax: `network` is "maf" or "spf"."""
    import jax
    import jax.numpy as jnp
    from tensorflow_probability.substrates.jax import distributions as tfd

    import sbijax
    from sbijax import mcmc, nn

    # A distribution of one named part, as its documentation has it.
    prior = tfd.JointDistributionNamed(
        {
            "theta": tfd.Independent(
                tfd.Uniform(data["low"], data["high"])
                if "low" in data
                else tfd.Normal(data["loc"], data["scale"]),
                1,
            )
        },
        batch_ndims=0,
    )
    num_outputs = data["x" if method == "nle" else "theta"].shape[1]
    reach = float(np.abs(data["x" if method == "nle" else "theta"]).max())
    flow = {
        "maf": lambda: nn.make_maf(num_outputs),
        "spf": lambda: nn.make_spf(num_outputs, -1.2 * reach, 1.2 * reach),
        "cnf": lambda: nn.make_cnf(num_outputs),
        "resnet": lambda: nn.make_resnet(),
    }[network]()
    objective = getattr(sbijax, method)(flow)
    sampler = mcmc.make_sampler(mcmc.nuts, prior=prior)
    keys = iter(jax.random.split(jax.random.key(seed), 1_000))

    def train() -> Any:
        rows = {"theta": jnp.asarray(data["theta"]), "y": jnp.asarray(data["x"])}
        return sbijax.train(next(keys), objective, rows)[0]

    def draw(params: Any, x: np.ndarray, num_draws: int) -> np.ndarray:
        if method in ("npe", "fmpe"):
            options = {"n_samples": num_draws}
        else:
            options = {"sampler": sampler, "n_samples": num_draws // 4}
        draws, _ = sbijax.sample(
            next(keys), objective, params, jnp.asarray(x), prior=prior, **options
        )
        return np.asarray(draws["theta"]).reshape(num_draws, -1)

    @jax.jit
    def loss(params: Any, theta: Any, x: Any) -> Any:
        y, given = (x, theta) if method == "nle" else (theta, x)
        return -flow.apply(params, None, method="log_prob", y=y, x=given)

    @jax.jit
    def draw_flow(params: Any, key: Any, xs: Any) -> Any:
        return flow.apply(params, key, method="sample", sample_shape=(len(xs),), x=xs)

    def draw_batch(params: Any, xs: np.ndarray, num_draws: int) -> np.ndarray:
        # Its own call takes one observation; this is what it could do, compiled.
        rows = jnp.repeat(jnp.asarray(xs), num_draws, axis=0)
        draws = draw_flow(params, next(keys), rows)
        return np.asarray(draws).reshape(len(xs), num_draws, -1)

    return Pipeline(
        f"sbijax {sbijax.__version__} (PyPI), jax {jax.__version__}",
        train,
        draw,
        (lambda *a: np.asarray(loss(*a))) if method in ("npe", "nle") else None,
        draw_batch if method == "npe" else None,
    )


def make_bayesflow(method: str, network: str, data: Arrays, seed: int) -> Pipeline:
    """BayesFlow on JAX: `network` is one of its inference networks."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import bayesflow as bf
    import keras

    keras.utils.set_random_seed(seed)

    def rows(theta: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"theta": theta.astype(np.float32), "x": x.astype(np.float32)}

    def train() -> Any:
        workflow = bf.BasicWorkflow(
            inference_network=network,
            inference_variables="theta",
            inference_conditions="x",
            standardize="all",
        )
        held = len(data["theta"]) // 10
        workflow.fit_offline(
            rows(data["theta"][held:], data["x"][held:]),
            validation_data=rows(data["theta"][:held], data["x"][:held]),
            verbose=0,
        )
        return workflow

    def draw_batch(workflow: Any, xs: np.ndarray, num_draws: int) -> np.ndarray:
        conditions = {"x": xs.astype(np.float32)}
        return np.asarray(
            workflow.sample(num_samples=num_draws, conditions=conditions)["theta"]
        )

    def draw(workflow: Any, x: np.ndarray, num_draws: int) -> np.ndarray:
        return draw_batch(workflow, x[None], num_draws)[0]

    def loss(workflow: Any, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return -np.asarray(workflow.log_prob(rows(theta, x))).reshape(len(theta))

    return Pipeline(
        f"BayesFlow {bf.__version__}, keras {keras.__version__}",
        train,
        draw,
        loss if method == "npe" else None,
        draw_batch,
    )


PACKAGES = {
    "ours": make_ours,
    "sbi": make_sbi,
    "sbijax_pypi": make_sbijax_pypi,
    "bayesflow": make_bayesflow,
}


def run(pipeline: Pipeline, data: Arrays) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds of each part, the held-out loss, and the draws."""
    result: dict[str, Any] = {"version": pipeline.version}
    trained, result["train_seconds"], result["train_cpu_seconds"] = _timed(
        pipeline.train
    )
    draws, seconds = [], []
    for x in data["x_observed"]:
        found, took, _ = _timed(pipeline.draw, trained, x, NUM_DRAWS)
        draws.append(found)
        seconds.append(took)
    result["draw_seconds"] = seconds
    result.update(pipeline.history or {})
    if pipeline.loss:
        losses = pipeline.loss(trained, data["test_theta"], data["test_x"])
        result["test_loss"] = float(losses.mean())
        result["test_loss_sem"] = float(losses.std() / math.sqrt(len(losses)))
    if pipeline.draw_batch:
        for name, (num_x, num_draws) in {"batch": NUM_BATCH, "sbc": NUM_SBC}.items():
            xs = data["test_x"][:num_x]
            try:
                _, took, _ = _timed(pipeline.draw_batch, trained, xs, num_draws)
            except TimeoutError:
                took = None
            result[f"{name}_seconds"] = took
    return result, np.stack(draws)


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float, float]:
    start, start_cpu = time.perf_counter(), time.process_time()
    found = function(*args)
    return found, time.perf_counter() - start, time.process_time() - start_cpu


def main() -> None:
    """Train, draw, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("method")
    parser.add_argument("network")
    parser.add_argument("arrays", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("draws", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with np.load(args.arrays) as arrays:
        data = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    make = PACKAGES[args.package]
    pipeline, seconds, _ = _timed(make, args.method, args.network, data, args.seed)
    result, draws = run(pipeline, data)
    np.savez_compressed(args.draws, draws=draws)
    args.result.write_text(json.dumps({"import_seconds": seconds, **result}))


if __name__ == "__main__":
    main()
