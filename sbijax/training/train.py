"""Training for people: progress, checkpoints, Ctrl-C, and warnings in words."""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator

import jax
import numpy as np
import optax
from tqdm import tqdm

from sbijax.base import Array, Estimator, Params, SbijaxWarning, Simulations, Stats
from sbijax.checks import check_count, check_key, check_record
from sbijax.data import make_simulations
from sbijax.training.checkpoint import fingerprint, open_checkpoint
from sbijax.training.fit import fit, init_state, result, run_epochs
from sbijax.training.records import TrainConfig, TrainInfo, TrainState, is_done

__all__ = ["make_config", "run_training", "train"]

_SECONDS_PER_CALL = 0.5
_SECONDS_PER_CHECKPOINT = 30.0


def train(
    key: Array,
    estimator: Estimator,
    sims: Simulations,
    *,
    learning_rate: float | Array = 5e-3,
    weight_decay: float | Array = 0.2,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    validation_fraction: float = 0.1,
    patience: int = 10,
    num_decays: int = 2,
    optimizer: optax.GradientTransformation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Params, TrainInfo]:
    """Train an estimator on simulations, in one compiled program.

    Adam with decoupled weight decay, gradient clipping and a linear warm-up
    minimises the estimator's loss; the validation loss of the running average
    of the parameters decides.  After `patience` epochs without a better one the
    learning rate and the weight decay fall and training goes on from the best
    parameters; after `num_decays` falls it stops.  Under `jax.vmap` or `jax.jit`
    this is the pure function `fit`, without progress, checkpoints or warnings.

    Args:
        key: PRNG key.
        estimator: what to train.
        sims: simulations; rows with non-finite entries get weight 0.
        learning_rate: of Adam; may be traced.
        weight_decay: decoupled decay of weight matrices; may be traced.
        batch_size: rows per step, by default N / 100 within 50 and 500; more
            than there are is fine.
        max_epochs: upper limit of passes over the data.
        validation_fraction: share of rows held out, in [0, 1); with 0, or too
            few rows to hold one out, the training loss decides.
        patience: epochs without improvement before the learning rate falls.
        num_decays: falls of the learning rate before training stops.
        optimizer: any optax optimizer, in place of the default and of
            `learning_rate` and `weight_decay`.
        checkpoint: folder to write the state of the run to; if it holds one
            already, training continues there and ends with the same bits.
        progress: whether to show a bar with both losses.

    Returns:
        The parameters with the best validation loss, and a `TrainInfo`.
        Ctrl-C, once an epoch is finished, returns the best so far.

    Raises:
        TypeError: an argument is not of its kind, or the estimator has no loss.
        ValueError: empty or mismatched simulations, or all outside the prior;
            absurd settings; a checkpoint of another run.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta, noise = jax.random.normal(jax.random.key(0), (2, 500))
        >>> sims = sj.make_simulations(theta, theta + noise)
        >>> npe = sj.make_npe(prior, density=sj.densities.mdn(num_components=1))
        >>> params, info = sj.train(jax.random.key(1), npe, sims, progress=False)
        >>> bool(info.converged)
        True
    """
    check_key(key)
    order = "The order is train(key, estimator, sims)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(sims, Simulations, "sims", order)
    if estimator.loss is None:
        raise TypeError("this estimator is training-free: call infer without train.")
    sims = make_simulations(sims.theta, sims.x, sims.weight)
    config = make_config(
        batch_size, max_epochs, validation_fraction, patience, num_decays, optimizer
    )
    return run_training(
        key,
        estimator,
        sims,
        config,
        learning_rate,
        weight_decay,
        checkpoint=checkpoint,
        progress=progress,
    )


def run_training(
    key: Array,
    estimator: Estimator,
    sims: Simulations,
    config: TrainConfig,
    learning_rate: float | Array,
    weight_decay: float | Array,
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[Params, TrainInfo]:
    """`fit` for people; see `train` for the arguments."""
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((key, sims, rates))):
        if checkpoint is not None:
            raise ValueError("a traced training run cannot write a checkpoint.")
        return fit(key, estimator, sims, config=config, **rates)
    _check_rates(learning_rate, weight_decay)
    _report_weights(sims)

    state = init_state(key, sims, **rates, estimator=estimator, config=config)
    _report_outside(state)
    with contextlib.ExitStack() as stack:
        saved, finished = None, True
        if checkpoint is not None:
            identity = fingerprint(state, sims, estimator, config)
            saved = stack.enter_context(open_checkpoint(checkpoint, identity))
            state = saved.restore(state) or state
        bar = stack.enter_context(
            tqdm(
                total=config.max_epochs,
                desc="training",
                unit="epoch",
                disable=not progress,
            )
        )
        written = time.monotonic()
        latest = [state]
        try:
            for segment in _segments(state, sims, estimator, config):
                latest.append(segment)
                del latest[0]
                _show(bar, segment)
                if saved and time.monotonic() - written > _SECONDS_PER_CHECKPOINT:
                    saved.save(segment, int(segment.epoch))
                    written = time.monotonic()
        except KeyboardInterrupt:
            if int(latest[-1].epoch) == 0:
                raise
            finished = False
            warnings.warn(
                f"training was interrupted after {int(latest[-1].epoch)} epochs; the "
                "best parameters so far are returned.",
                SbijaxWarning,
                stacklevel=3,
            )
        state = latest[-1]
        if saved:
            saved.save(state, int(state.epoch))
        bar.total = int(state.epoch)
        bar.refresh()
    params, info = result(state, config)
    if finished:
        _report(info, config)
    return params, info


def _segments(
    state: TrainState, sims: Simulations, estimator: Estimator, config: TrainConfig
) -> Iterator[TrainState]:
    """States of the run, about every half second."""
    num_epochs, epoch = 1, int(state.epoch)
    while epoch < config.max_epochs and not bool(is_done(state, config)):
        start = time.monotonic()
        state = run_epochs(
            state, sims, epoch + num_epochs, estimator=estimator, config=config
        )
        epoch = int(jax.block_until_ready(state.epoch))
        per_epoch = (time.monotonic() - start) / num_epochs
        num_epochs = max(1, min(2 * num_epochs, int(_SECONDS_PER_CALL / per_epoch)))
        yield state


def _show(bar: tqdm, state: TrainState) -> None:
    epoch = int(state.epoch)
    train_loss = float(state.train_loss[epoch - 1])
    bar.set_postfix_str(
        f"train {train_loss:.3f}, validation {float(state.val_loss[epoch - 1]):.3f} "
        f"(best {float(state.best_loss):.3f} at {int(state.best_epoch)})",
        refresh=False,
    )
    bar.update(epoch - bar.n)


def make_config(
    batch_size: int | None,
    max_epochs: int,
    validation_fraction: float,
    patience: int,
    num_decays: int,
    optimizer: optax.GradientTransformation | None,
) -> TrainConfig:
    """Checked settings as plain Python numbers."""
    if not 0.0 <= float(validation_fraction) < 1.0:
        raise ValueError(
            f"validation_fraction must be in [0, 1), got {validation_fraction}."
        )
    if optimizer is not None and not callable(getattr(optimizer, "update", None)):
        raise TypeError(f"optimizer must be an optax optimizer, got {optimizer!r}.")
    return TrainConfig(
        batch_size=None
        if batch_size is None
        else check_count(batch_size, "batch_size"),
        max_epochs=check_count(max_epochs, "max_epochs"),
        validation_fraction=float(validation_fraction),
        patience=check_count(patience, "patience"),
        num_decays=check_count(num_decays, "num_decays", least=0),
        optimizer=optimizer,
    )


def _check_rates(learning_rate: float | Array, weight_decay: float | Array) -> None:
    for name, rate in {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
    }.items():
        if np.ndim(rate) or not np.issubdtype(np.asarray(rate).dtype, np.number):
            raise TypeError(f"{name} must be one number, got {rate!r}.")
    if not 0.0 < float(learning_rate) < math.inf:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    if not 0.0 <= float(weight_decay) < math.inf:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")


def _report_weights(sims: Simulations) -> None:
    size, num_zero = sims.weight.shape[0], int(np.sum(np.asarray(sims.weight) == 0))
    if num_zero == size:
        raise ValueError(
            f"all {size} simulations have weight 0: every one failed or holds "
            "non-finite values, so there is nothing to learn from."
        )
    if num_zero > 0.1 * size:
        warnings.warn(
            f"{num_zero:,} of {size:,} simulations have weight 0 and are left out; "
            "what is learned is the posterior given that the simulator succeeds.",
            SbijaxWarning,
            stacklevel=4,
        )


def _report_outside(state: TrainState) -> None:
    if not isinstance(state.stats, Stats):
        return
    num_outside, num_valid = int(state.stats.num_outside), int(state.num_valid)
    message = (
        f"theta lies outside the prior's support (or a discrete x outside its "
        f"num_categories) in {num_outside:,} of {num_valid:,} simulations; check that "
        "they were drawn from this prior, and the order and the units of the "
        "parameters."
    )
    if num_outside == num_valid:
        raise ValueError(message)
    if num_outside > 0.05 * num_valid:  # a few draws may underflow to the bound
        warnings.warn(message, SbijaxWarning, stacklevel=4)


def _still_falling(info: TrainInfo) -> bool:
    """Whether the last tenth of the epochs brought a hundredth of the progress."""
    if bool(info.converged):
        return False
    num_epochs = int(info.num_epochs)
    losses = np.minimum.accumulate(np.asarray(info.val_loss)[:num_epochs])
    recent = losses[num_epochs - 1 - math.ceil((num_epochs - 1) / 10)]
    return bool(recent - losses[-1] >= 0.01 * (losses[0] - losses[-1]))


def _report(info: TrainInfo, config: TrainConfig) -> None:
    """Say in one line each what may be wrong with a finished run."""
    num_epochs, best = int(info.num_epochs), int(info.best_epoch)
    messages = []
    if not np.isfinite(float(info.best_loss)):
        messages.append(
            "the loss was never finite; look for extreme values in the simulations "
            "or lower learning_rate. If entries of x are missing, the estimator needs "
            "standardizer=networks.missing(networks.robust())."
        )
    elif num_epochs == config.max_epochs and _still_falling(info):
        messages.append(
            f"training used all {config.max_epochs} epochs and the validation loss "
            "was still falling; raise max_epochs."
        )
    elif num_epochs > 1 and float(info.best_loss) >= float(info.val_loss[0]):
        messages.append(
            "training stopped on a plateau: the validation loss never improved on "
            f"the first epoch ({float(info.val_loss[0]):.3f}); try another "
            "learning_rate, or check that x carries information on theta."
        )
    gap = float(info.val_loss[best] - info.train_loss[best])
    drop = float(info.val_loss[0] - info.best_loss)
    if best > 0 and drop > 0 and gap > max(drop, 1.0):
        messages.append(
            f"the network overfits: at the best epoch the validation loss is {gap:.2f} "
            "above the training loss; more simulations, a smaller network or an "
            "ensemble would help."
        )
    if int(info.num_skipped):
        messages.append(
            f"{int(info.num_skipped)} steps had non-finite gradients and were "
            "skipped; lower learning_rate if there are many."
        )
    for message in messages:
        warnings.warn(message, SbijaxWarning, stacklevel=4)
