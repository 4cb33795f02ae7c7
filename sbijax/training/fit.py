"""Training as one pure function of a key and the simulations.

An epoch is a loop over mini-batches, training is a loop over epochs, and
shuffling, validation, learning-rate decay, early stopping and the best
parameters all live in the carry.  So a whole run is one compiled program, and
`jax.vmap` over keys, learning rates or data sets trains many at once.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import Array, Estimator, Params, Simulations
from sbijax.checks import check_key
from sbijax.training.flat import flatten
from sbijax.training.records import TrainConfig, TrainInfo, TrainState, is_done
from sbijax.training.steps import (
    default_learning_rate,
    default_weight_decay,
    end_epoch,
    start_optimizer,
    train_on_fresh,
    train_on_rows,
)

__all__ = ["fit", "init_state", "result", "run_epochs", "start_state"]


def fit(
    key: Array,
    estimator: Estimator,
    sims: Simulations,
    *,
    config: TrainConfig = TrainConfig(),
    learning_rate: float | Array | None = None,
    weight_decay: float | Array | None = None,
) -> tuple[Params, TrainInfo]:
    """Train an estimator: pure, so that it may be jitted, vmapped and scanned."""
    if learning_rate is None:
        learning_rate = default_learning_rate(estimator)
    if weight_decay is None:
        weight_decay = default_weight_decay(sims.weight.shape[0])
    state = init_state(
        key,
        sims,
        learning_rate,
        weight_decay,
        estimator=estimator,
        config=config,
    )
    state = run_epochs(
        state, sims, config.max_epochs, estimator=estimator, config=config
    )
    return result(state, config)


@partial(jax.jit, static_argnames="config")
def result(state: TrainState, config: TrainConfig) -> tuple[Params, TrainInfo]:
    """Best parameters so far, and the account of the run."""
    info = TrainInfo(
        train_loss=state.train_loss,
        val_loss=state.val_loss,
        num_epochs=state.epoch,
        best_epoch=state.best_epoch,
        best_loss=state.best_loss,
        converged=is_done(state, config),
        num_skipped=state.num_skipped,
    )
    return Params(state.best_net.tree(), state.stats), info


@partial(jax.jit, static_argnames=("estimator", "config"))
def init_state(
    key: Array,
    sims: Simulations,
    learning_rate: Array,
    weight_decay: Array,
    *,
    estimator: Estimator,
    config: TrainConfig,
) -> TrainState:
    """Initial parameters, and the split into training and validation rows."""
    check_key(key)
    net_key, split_key, train_key = jax.random.split(key, 3)
    params = estimator.init(net_key, sims)
    size = sims.weight.shape[0]
    num_valid = jnp.sum(sims.weight > 0)
    num_val = jnp.floor(config.validation_fraction * num_valid).astype(num_valid.dtype)
    num_val = jnp.minimum(num_val, jnp.maximum(num_valid - 1, 0))
    draw = jnp.where(sims.weight > 0, jax.random.uniform(split_key, (size,)), 2.0)
    rows = jnp.argsort(draw)
    training = jnp.arange(size) < num_valid - num_val
    return start_state(
        train_key,
        params,
        learning_rate,
        weight_decay,
        rows=rows,
        num_train=num_valid - num_val,
        num_valid=num_valid,
        mean_weight=jnp.mean(sims.weight[rows], where=training),
        config=config,
    )


def start_state(
    key: Array,
    params: Params,
    learning_rate: Array,
    weight_decay: Array,
    *,
    rows: Array,
    num_train: Array,
    num_valid: Array,
    mean_weight: Array,
    config: TrainConfig,
) -> TrainState:
    """The state before the first epoch.

    `rows[:num_train]` of the simulations at hand are to be trained on, and
    `rows[num_train:num_valid]` are held out for validation.
    """
    net = flatten(params.net)
    zero = jnp.zeros((), num_valid.dtype)
    losses = jnp.full(config.max_epochs, jnp.nan, mean_weight.dtype)
    return TrainState(
        key=key,
        stats=params.stats,
        net=net,
        average=net,
        opt_state=start_optimizer(net, config),
        rows=rows,
        num_train=num_train,
        num_valid=num_valid,
        mean_weight=mean_weight,
        learning_rate=jnp.asarray(learning_rate, losses.dtype),
        weight_decay=jnp.asarray(weight_decay, losses.dtype),
        num_decays=zero,
        epoch=zero,
        step=zero,
        stalled=zero,
        best_net=net,
        best_loss=jnp.full((), jnp.inf, losses.dtype),
        best_epoch=zero,
        num_skipped=zero,
        train_loss=losses,
        val_loss=losses,
    )


@partial(jax.jit, static_argnames=("estimator", "config"))
def run_epochs(
    state: TrainState,
    sims: Simulations,
    until_epoch: int | Array,
    *,
    estimator: Estimator,
    config: TrainConfig,
) -> TrainState:
    """Train until an epoch is reached or early stopping ends the run."""
    limit = jnp.minimum(until_epoch, config.max_epochs)
    size = state.rows.shape[0]
    capacity = max(1, math.ceil(config.validation_fraction * size))

    def unfinished(state: TrainState) -> Array:
        return (state.epoch < limit) & ~is_done(state, config)

    def epoch(state: TrainState) -> TrainState:
        key, shuffle_key, loss_key = jax.random.split(state.key, 3)
        state, train_loss = _train_epoch(
            state._replace(key=key), sims, shuffle_key, loss_key, estimator, config
        )
        return end_epoch(
            state,
            sims,
            train_loss,
            capacity=capacity,
            estimator=estimator,
            config=config,
        )

    return jax.lax.while_loop(unfinished, epoch, state)


def _train_epoch(
    state: TrainState,
    sims: Simulations,
    shuffle_key: Array,
    loss_key: Array,
    estimator: Estimator,
    config: TrainConfig,
) -> tuple[TrainState, Array]:
    """One pass over the training rows in random order; the mean training loss."""
    if config.source is not None:
        return train_on_fresh(state, loss_key, estimator=estimator, config=config)
    size = state.rows.shape[0]
    draw = jax.random.uniform(shuffle_key, (size,))
    draw = jnp.where(jnp.arange(size) < state.num_train, draw, 2.0)
    order = state.rows[jnp.argsort(draw)]
    state, total, num_batches = train_on_rows(
        state,
        sims,
        order,
        state.num_train,
        loss_key,
        estimator=estimator,
        config=config,
    )
    return state, total / num_batches
