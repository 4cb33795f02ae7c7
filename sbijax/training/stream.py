"""Training on simulations larger than memory: one buffer at a time.

While a compiled program takes its steps on the rows of one buffer, the next one is
read on a thread.  So two buffers are in memory, and the rows held out for
validation.  What an epoch is, and what follows from it, is as in `fit`.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, Estimator, LazySimulations, Simulations
from sbijax.data import make_simulations
from sbijax.training.fit import start_state
from sbijax.training.reading import (
    Plan,
    make_buffer,
    make_entropy,
    make_plan,
    read_into,
)
from sbijax.training.records import TrainConfig, TrainState, is_done
from sbijax.training.steps import default_batch_size, end_epoch, train_on_rows

__all__ = ["Stream", "open_stream", "read_sample", "start_stream", "stream_epochs"]


class Stream(NamedTuple):
    """A lazy source, what one of its rows looks like, and what is read when."""

    source: LazySimulations
    like: Simulations
    plan: Plan

    @property
    def num_train(self) -> int:
        """Rows that are not held out."""
        return int(self.plan.cuts[-1])


def open_stream(
    key: Array,
    source: LazySimulations,
    like: Simulations,
    buffer_size: int,
    config: TrainConfig,
) -> tuple[Stream, TrainConfig]:
    """Plan the reading of a source, with a batch size that suits all of its rows."""
    size = len(source)
    batch_size = min(config.batch_size or default_batch_size(size), buffer_size)
    plan = make_plan(
        make_entropy(key),
        size,
        buffer_size=buffer_size,
        validation_fraction=config.validation_fraction,
        batch_size=batch_size,
    )
    return Stream(source, like, plan), config._replace(batch_size=batch_size)


def read_sample(stream: Stream) -> Simulations:
    """The rows that are read first; those held out for validation come first."""
    slices = stream.plan.sample
    num_rows = int((slices[:, 1] - slices[:, 0]).sum())
    buffer = make_buffer(stream.like, num_rows)
    return make_simulations(*read_into(buffer, stream.source, slices))


@partial(jax.jit, static_argnames=("num_held_out", "estimator", "config"))
def start_stream(
    net_key: Array,
    train_key: Array,
    sample: Simulations,
    learning_rate: Array,
    weight_decay: Array,
    *,
    num_held_out: int,
    estimator: Estimator,
    config: TrainConfig,
) -> tuple[TrainState, Simulations]:
    """Initial parameters, fitted on the sample, and the rows held out."""
    # Where there are none, one row that does not count stands for them.
    held_out = jax.tree.map(lambda leaf: leaf[: max(1, num_held_out)], sample)
    valid = (held_out.weight > 0) & (jnp.arange(held_out.weight.size) < num_held_out)
    num_valid = jnp.sum(valid)
    state = start_state(
        train_key,
        estimator.init(net_key, sample),
        learning_rate,
        weight_decay,
        rows=jnp.argsort(~valid),
        num_train=jnp.zeros_like(num_valid),
        num_valid=num_valid,
        mean_weight=jnp.mean(sample.weight, where=sample.weight > 0),
        config=config,
    )
    return state, held_out


@partial(jax.jit, static_argnames=("estimator", "config"))
def train_on_buffer(
    state: TrainState,
    buffer: Simulations,
    group: int | Array,
    *,
    estimator: Estimator,
    config: TrainConfig,
) -> tuple[TrainState, Array, Array]:
    """One pass over the rows of a buffer that have weight, in random order.

    Returns:
        The state, the sum of the losses of all steps, and the number of steps.
    """
    sims = make_simulations(*buffer)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.epoch), group)
    shuffle_key, loss_key = jax.random.split(key)
    draw = jax.random.uniform(shuffle_key, sims.weight.shape)
    order = jnp.argsort(jnp.where(sims.weight > 0, draw, 2.0))
    return train_on_rows(
        state,
        sims,
        order,
        jnp.sum(sims.weight > 0),
        loss_key,
        estimator=estimator,
        config=config,
    )


_end_epoch = jax.jit(end_epoch, static_argnames=("capacity", "estimator", "config"))


def stream_epochs(
    state: TrainState,
    held_out: Simulations,
    stream: Stream,
    *,
    estimator: Estimator,
    config: TrainConfig,
    show: Callable[[int], None],
) -> Iterator[TrainState]:
    """States of the run after each epoch; `show` gets the rows seen of this one."""
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="sbijax-read") as thread:
        try:
            epochs = range(int(state.epoch), config.max_epochs)
            buffers = _read_ahead(thread, stream, epochs, stop)
            while int(state.epoch) < config.max_epochs and not bool(
                is_done(state, config)
            ):
                state, train_loss = _train_epoch(
                    state, buffers, stream, estimator, config, show
                )
                state = _end_epoch(
                    state,
                    held_out,
                    train_loss,
                    capacity=held_out.weight.size,
                    estimator=estimator,
                    config=config,
                )
                yield jax.block_until_ready(state)
        finally:
            stop.set()


def _read_ahead(
    thread: ThreadPoolExecutor, stream: Stream, epochs: range, stop: threading.Event
) -> Iterator[Simulations]:
    """Groups of all epochs, one after another, in two buffers that take turns.

    While the one that was handed out is in use, the other one is being filled.
    """
    free, used = (make_buffer(stream.like, stream.plan.capacity) for _ in range(2))
    waiting = None
    for slices in (group for epoch in epochs for group in stream.plan.groups(epoch)):
        ready = None if waiting is None else waiting.result()
        waiting = thread.submit(read_into, free, stream.source, slices, stop)
        free, used = used, free
        if ready is not None:
            yield ready
    if waiting is not None:
        yield waiting.result()


def _train_epoch(
    state: TrainState,
    buffers: Iterator[Simulations],
    stream: Stream,
    estimator: Estimator,
    config: TrainConfig,
    show: Callable[[int], None],
) -> tuple[TrainState, float]:
    """One pass over all rows that are not held out; the mean training loss."""
    total, num_steps = 0.0, 0
    for group, num_seen in enumerate(stream.plan.cuts[1:].tolist()):
        buffer = jax.device_put(next(buffers))
        state, loss, steps = train_on_buffer(
            state, buffer, group, estimator=estimator, config=config
        )
        total, num_steps = total + float(loss), num_steps + int(steps)
        del buffer  # its memory is written to from here on
        show(num_seen)
    if num_steps == 0:
        raise ValueError(
            f"all {stream.num_train:,} simulations that are not held out have weight "
            "0: every one failed or holds non-finite values, so there is nothing to "
            "learn from."
        )
    return state, total / num_steps
