"""Training for people: progress, checkpoints, Ctrl-C, and warnings in words."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import jax
import numpy as np
import optax
from tqdm import tqdm

from sbijax.base import (
    Array,
    Estimator,
    LazySimulations,
    Params,
    SbijaxWarning,
    Simulations,
)
from sbijax.checks import check_count, check_key, check_record
from sbijax.data import make_simulations
from sbijax.training.checkpoint import fingerprint, open_checkpoint
from sbijax.training.fit import fit, init_state, result, run_epochs
from sbijax.training.reading import (
    automatic_buffer_size,
    is_lazy,
    read_one,
    read_slice,
)
from sbijax.training.records import TrainConfig, TrainInfo, TrainState, is_done
from sbijax.training.reports import report_outside, report_run, report_weights
from sbijax.training.settings import check_rates, make_config
from sbijax.training.steps import default_learning_rate, default_weight_decay
from sbijax.training.stream import (
    open_stream,
    read_sample,
    start_stream,
    stream_epochs,
)

__all__ = ["run_training", "train"]

_SECONDS_PER_CALL = 0.5
_SECONDS_PER_CHECKPOINT = 30.0


def train(
    key: Array,
    estimator: Estimator,
    sims: Simulations | LazySimulations,
    *,
    learning_rate: float | Array | None = None,
    weight_decay: float | Array | None = None,
    batch_size: int | None = None,
    buffer_size: int | None = None,
    max_epochs: int = 1000,
    validation_fraction: float = 0.1,
    patience: int | None = None,
    num_decays: int = 3,
    optimizer: optax.GradientTransformation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Params, TrainInfo]:
    """Train an estimator on simulations, in one compiled program.

    Adam with decoupled weight decay, gradient clipping and a linear warm-up
    minimises the estimator's loss; the validation loss of the running average
    of the parameters decides.  After `patience` epochs without a better one the
    weight decay falls, the next times the learning rate as well, and training goes
    on from the best parameters; after `num_decays` falls it stops.  Where the first
    fall brought nothing, more weight decay than at first goes with the next.  Under
    `jax.vmap` or `jax.jit` this is the pure function `fit`, without progress,
    checkpoints or warnings.

    Simulations larger than memory are read from where they are, such as the folder
    of `open_simulations`.  Those that fit into `buffer_size` rows are trained on as
    if they had been given in memory.  Of more, a random half a buffer is read first:
    the statistics are fitted on it, and validation is on rows of it.  Then every
    epoch goes over all the other rows, in a random order of runs of rows that are
    mixed in a buffer, while the next buffer is being read.  Besides two buffers only
    the rows held out are in memory.

    Args:
        key: PRNG key.
        estimator: what to train.
        sims: `Simulations`, or `LazySimulations` such as those of
            `open_simulations`; rows with non-finite entries get weight 0.
        learning_rate: of Adam, by default 5e-3, of flow and score matching 2e-3;
            may be traced.
        weight_decay: decoupled decay of weight matrices to begin with, by default
            25 / N^.5 and at most 2; may be traced.
        batch_size: rows per step, by default N / 100 within 50 and 500; more
            than there are is fine.
        buffer_size: rows that are read at a time from `LazySimulations`, by default
            1 GB of them; it has no effect on simulations in memory.
        max_epochs: upper limit of passes over the data.
        validation_fraction: share of rows held out, in [0, 1); with 0, or too
            few rows to hold one out, the training loss decides; half a buffer at
            most.
        patience: epochs without improvement before the rates fall, by default 5, of
            flow and score matching 10, and at least as many as take 100 steps.
        num_decays: falls of the rates before training stops.  The first one, to a
            fifth, is that of the weight decay alone.
        optimizer: any optax optimizer, in place of the default and of
            `learning_rate` and `weight_decay`.
        checkpoint: folder to write the state of the run to; if it holds one
            already, training continues there and ends with the same bits.  When
            reading fails, the epochs that are finished are in it.
        progress: whether to show a bar with both losses.

    Returns:
        The parameters with the best validation loss, and a `TrainInfo`.
        Ctrl-C, once an epoch is finished, returns the best so far.

    Raises:
        TypeError: an argument is not of its kind, or the estimator has no loss.
        ValueError: empty or mismatched simulations, or all outside the prior;
            absurd settings; a checkpoint of another run; a slice of other shapes.
        Exception: whatever `LazySimulations` raise.

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
    if not is_lazy(sims):
        check_record(sims, Simulations, "sims", order)
    if estimator.loss is None:
        raise TypeError("this estimator is training-free: call infer without train.")
    config = make_config(
        batch_size, max_epochs, validation_fraction, patience, num_decays, optimizer
    )
    if learning_rate is None:
        learning_rate = default_learning_rate(estimator)
    if buffer_size is not None:
        buffer_size = check_count(buffer_size, "buffer_size")
    if is_lazy(sims):
        _check_not_traced(key, learning_rate, weight_decay)
        like = read_one(sims)
        buffer_size = buffer_size or automatic_buffer_size(like)
        if len(sims) > buffer_size:
            if weight_decay is None:
                weight_decay = default_weight_decay(len(sims))
            return _run_stream(
                key,
                estimator,
                sims,
                like,
                buffer_size,
                config,
                learning_rate,
                weight_decay,
                checkpoint=checkpoint,
                progress=progress,
            )
        sims = read_slice(sims, 0, len(sims))
    sims = make_simulations(*cast(Simulations, sims)[:3])
    if weight_decay is None:
        weight_decay = default_weight_decay(sims.weight.size)
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
    if _any_traced((key, sims, rates)):
        if checkpoint is not None:
            raise ValueError("a traced training run cannot write a checkpoint.")
        return fit(key, estimator, sims, config=config, **rates)
    check_rates(learning_rate, weight_decay)
    report_weights(sims, sims.weight.size)

    state = init_state(key, sims, **rates, estimator=estimator, config=config)
    report_outside(state, int(state.num_valid))
    identity = None
    if checkpoint is not None:
        identity = fingerprint(state, sims, estimator, config)

    def segments(state: TrainState, bar: tqdm) -> Iterator[TrainState]:
        return _segments(state, sims, estimator, config)

    return _follow(state, segments, config, checkpoint, identity, progress)


def _run_stream(
    key: Array,
    estimator: Estimator,
    source: LazySimulations,
    like: Simulations,
    buffer_size: int,
    config: TrainConfig,
    learning_rate: float | Array,
    weight_decay: float | Array,
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[Params, TrainInfo]:
    """`run_training` on simulations larger than a buffer."""
    check_rates(learning_rate, weight_decay)
    net_key, split_key, train_key = jax.random.split(key, 3)
    stream, config = open_stream(split_key, source, like, buffer_size, config)
    num_rows, num_held_out = len(source), stream.plan.num_held_out
    sample = read_sample(stream)
    report_weights(sample, num_rows)
    state, held_out = start_stream(
        net_key,
        train_key,
        sample,
        learning_rate,
        weight_decay,
        num_held_out=num_held_out,
        estimator=estimator,
        config=config,
    )
    report_outside(state, int((sample.weight > 0).sum()))
    identity = None
    if checkpoint is not None:
        reading = [num_rows, buffer_size, num_held_out]
        identity = fingerprint(state, sample, estimator, config, reading)
    del sample  # it takes half a buffer

    def segments(state: TrainState, bar: tqdm) -> Iterator[TrainState]:
        return stream_epochs(
            state,
            held_out,
            stream,
            estimator=estimator,
            config=config,
            show=partial(_show_rows, bar, stream.num_train),
        )

    return _follow(state, segments, config, checkpoint, identity, progress)


def _follow(
    state: TrainState,
    segments: Callable[[TrainState, tqdm], Iterator[TrainState]],
    config: TrainConfig,
    checkpoint: str | os.PathLike[str] | None,
    identity: dict[str, Any] | None,
    progress: bool,
) -> tuple[Params, TrainInfo]:
    """Run to the end, or to Ctrl-C, showing and keeping the states on the way."""
    with contextlib.ExitStack() as stack:
        saved, finished = None, True
        if checkpoint is not None:
            assert identity is not None
            saved = stack.enter_context(open_checkpoint(checkpoint, identity))
            state = saved.restore(state) or state
        bar = stack.enter_context(
            tqdm(
                total=config.max_epochs,
                desc="training",
                unit="epoch",
                disable=not progress,
                miniters=0,
            )
        )
        written = time.monotonic()
        latest = [state]
        try:
            with contextlib.closing(segments(state, bar)) as run:  # type: ignore[type-var]
                for segment in run:
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
                stacklevel=4,
            )
        except Exception:
            if saved and int(latest[-1].epoch) > 0:
                saved.save(latest[-1], int(latest[-1].epoch))
            raise
        state = latest[-1]
        if saved:
            saved.save(state, int(state.epoch))
        bar.total = int(state.epoch)
        bar.refresh()
    params, info = result(state, config)
    if finished:
        report_run(info, config)
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
    losses = np.asarray(state.train_loss), np.asarray(state.val_loss)
    train_loss, val_loss = (loss[epoch - 1] for loss in losses)
    bar.set_postfix_str(
        f"train {train_loss:.3f}, validation {val_loss:.3f} "
        f"(best {float(state.best_loss):.3f} at {int(state.best_epoch)})",
        refresh=False,
    )
    bar.update(epoch - bar.n)


def _show_rows(bar: tqdm, num_rows: int, num_seen: int) -> None:
    bar.set_description(f"training, {num_seen:,} of {num_rows:,} rows", refresh=False)
    bar.update(0)


def _check_not_traced(*values: Any) -> None:
    if _any_traced(values):
        raise TypeError(
            "simulations that are read as they are asked for cannot be trained on "
            "under jit or vmap. Load them, train(key, estimator, sims[:]), or call "
            "train outside of it."
        )


def _any_traced(values: Any) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(values))
