"""Training on fresh simulations: no data set is kept, and none can be overfitted.

Every step draws its own batch inside the compiled program, so that the gradient is
that of the expected loss,

    E_{p(theta) p(x | theta)} L(phi; theta, x),

and how much is learned is bounded by time instead of memory.
"""

import os

import jax
import optax

from sbijax.base import Array, Estimator, Params, Prior
from sbijax.checks import check_count, check_key, check_record
from sbijax.simulators.simulate import Simulator, simulate_batch
from sbijax.training import Source, TrainInfo, make_config, run_training

__all__ = ["train_online"]


def train_online(
    key: Array,
    estimator: Estimator,
    prior: Prior,
    simulator: Simulator,
    *,
    batch_size: int = 500,
    steps_per_epoch: int = 200,
    num_validation: int = 10_000,
    learning_rate: float | Array = 2e-3,
    weight_decay: float | Array = 0.0,
    max_epochs: int = 100,
    patience: int = 5,
    num_decays: int = 4,
    optimizer: optax.GradientTransformation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Params, TrainInfo]:
    """Train an estimator on simulations that are drawn as it learns.

    For simulators in JAX that are about as fast as a training step.  Progress,
    early stopping, checkpoints and Ctrl-C are those of `train`; an epoch is
    `steps_per_epoch` steps on fresh batches.

    Args:
        key: PRNG key.
        estimator: what to train.
        prior: theta is drawn from it.
        simulator: `(key, theta) -> x`, a JAX function of one draw.
        batch_size: simulations a step.
        steps_per_epoch: steps between two looks at the validation loss.
        num_validation: simulations that are kept, to fit the standardisation and
            to decide when to stop.
        learning_rate: of Adam; may be traced.
        weight_decay: decoupled decay of weight matrices; may be traced.
        max_epochs: upper limit; with the defaults 10 million simulations.
        patience: epochs without improvement before the learning rate falls.
        num_decays: falls of the learning rate before training stops.
        optimizer: any optax optimizer, in place of the default and of
            `learning_rate` and `weight_decay`.
        checkpoint: folder to write the state of the run to; if it holds one
            already, training continues there and ends with the same bits.
        progress: whether to show a bar with both losses.

    Returns:
        The parameters with the best validation loss, and a `TrainInfo`.

    Raises:
        TypeError: an argument is not of its kind, or the estimator has no loss.
        ValueError: absurd settings; a checkpoint of another run.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key)
        >>> npe = sj.make_npe(prior, density=sj.densities.mdn(num_components=1))
        >>> params, info = sj.train_online(
        ...     jax.random.key(0), npe, prior, simulator,
        ...     steps_per_epoch=20, patience=2, num_decays=0, progress=False,
        ... )
        >>> bool(info.converged)
        True

    Reference:
        Radev, Mertens, Voss, Ardizzone, Koethe. BayesFlow: learning complex
        stochastic models with invertible neural networks, 2020.
    """
    check_key(key)
    order = "The order is train_online(key, estimator, prior, simulator)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(prior, Prior, "prior", order)
    if estimator.loss is None:
        raise TypeError("this estimator is training-free: call infer without train.")
    if not callable(simulator):
        raise TypeError(f"simulator must be a function, got {simulator!r}. {order}")
    num_validation = check_count(num_validation, "num_validation", least=2)
    steps_per_epoch = check_count(steps_per_epoch, "steps_per_epoch")
    batch_size = check_count(batch_size, "batch_size")
    source = Source(simulate_batch, prior, simulator, steps_per_epoch)
    config = make_config(batch_size, max_epochs, 0.0, patience, num_decays, optimizer)
    # All rows at hand but one serve for validation.
    config = config._replace(validation_fraction=1.0, source=source)
    validation_key, train_key = jax.random.split(key)
    sims = jax.jit(source.simulate, static_argnums=1)(validation_key, num_validation)
    return run_training(
        train_key,
        estimator,
        sims,
        config,
        learning_rate,
        weight_decay,
        checkpoint=checkpoint,
        progress=progress,
    )
