"""Training as one pure function of a key and the simulations.

An epoch is a loop over mini-batches, training is a loop over epochs, and
shuffling, validation, learning-rate decay, early stopping and the best
parameters all live in the carry.  So a whole run is one compiled program, and
`jax.vmap` over keys, learning rates or data sets trains many at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sbijax.base import Array, Estimator, Params, Prior, PyTree, Simulations
from sbijax.checks import check_key

__all__ = [
    "Source",
    "TrainConfig",
    "TrainInfo",
    "TrainState",
    "decay_mask",
    "fit",
    "init_state",
    "run_epochs",
]


class TrainConfig(NamedTuple):
    """What shapes the compiled program; numbers people sweep are not in here.

    `batch_size` None stands for N / 100 within 50 and 500: small data learn
    best from noisy steps.  `optimizer` replaces the default (clipping, Adam,
    decoupled weight decay) together with its learning rate; `patience` epochs
    without a better validation loss lower the learning rate and the weight decay,
    and after `num_decays` of them training stops.  With a `source` the batches are
    fresh simulations, and the data at hand serve for validation.
    """

    batch_size: int | None = None
    max_epochs: int = 1000
    validation_fraction: float = 0.1
    patience: int = 10
    num_decays: int = 2
    optimizer: optax.GradientTransformation | None = None
    source: "Source | None" = None


class Source(NamedTuple):
    """Where fresh batches come from: `draw(key, prior, simulator, num_rows)`."""

    draw: Callable[..., Simulations]
    prior: Prior
    simulator: Callable[[Array, PyTree], PyTree]
    steps_per_epoch: int

    def simulate(self, key: Array, num_rows: int) -> Simulations:
        """A batch of new simulations."""
        return self.draw(key, self.prior, self.simulator, num_rows)


class TrainState(NamedTuple):
    """All that the next epoch needs; saving it is saving the run."""

    key: Array
    stats: PyTree
    net: PyTree
    average: PyTree
    opt_state: PyTree
    rows: Array
    num_train: Array
    num_valid: Array
    mean_weight: Array
    learning_rate: Array
    weight_decay: Array
    decay: Array
    num_decays: Array
    epoch: Array
    step: Array
    stalled: Array
    best_net: PyTree
    best_loss: Array
    best_epoch: Array
    num_skipped: Array
    train_loss: Array
    val_loss: Array


class TrainInfo(NamedTuple):
    """What training reports, as arrays.

    `train_loss` and `val_loss` are `[max_epochs]`, NaN after `num_epochs`;
    `best_epoch` counts from 0; `converged` tells whether the validation loss
    had stopped falling; `num_skipped` counts steps with non-finite gradients.
    """

    train_loss: Array
    val_loss: Array
    num_epochs: Array
    best_epoch: Array
    best_loss: Array
    converged: Array
    num_skipped: Array


WARMUP_STEPS = 100
CLIP_NORM = 5.0
DECAY_FACTOR = 0.3
AVERAGE_DECAY = 0.99
EVALUATION_BATCH = 2_000


def fit(
    key: Array,
    estimator: Estimator,
    sims: Simulations,
    *,
    config: TrainConfig = TrainConfig(),
    learning_rate: float | Array = 5e-3,
    weight_decay: float | Array = 0.2,
) -> tuple[Params, TrainInfo]:
    """Train an estimator: pure, so that it may be jitted, vmapped and scanned."""
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
    return Params(state.best_net, state.stats), info


def is_done(state: TrainState, config: TrainConfig) -> Array:
    """Whether early stopping has ended the run."""
    return state.num_decays > config.num_decays


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
    zero = jnp.zeros((), num_valid.dtype)
    losses = jnp.full(config.max_epochs, jnp.nan, sims.weight.dtype)
    return TrainState(
        key=train_key,
        stats=params.stats,
        net=params.net,
        average=params.net,
        opt_state=_optimizer(config).init(params.net),
        rows=rows,
        num_train=num_valid - num_val,
        num_valid=num_valid,
        mean_weight=jnp.mean(sims.weight[rows], where=training),
        learning_rate=jnp.asarray(learning_rate, losses.dtype),
        weight_decay=jnp.asarray(weight_decay, losses.dtype),
        decay=jnp.ones((), losses.dtype),
        num_decays=zero,
        epoch=zero,
        step=zero,
        stalled=zero,
        best_net=params.net,
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

    def unfinished(state: TrainState) -> Array:
        return (state.epoch < limit) & ~is_done(state, config)

    def epoch(state: TrainState) -> TrainState:
        key, shuffle_key, loss_key = jax.random.split(state.key, 3)
        state, train_loss = _train_epoch(
            state._replace(key=key), sims, shuffle_key, loss_key, estimator, config
        )
        val_loss = _validation_loss(state, sims, estimator, config)
        val_loss = jnp.where(state.num_valid > state.num_train, val_loss, train_loss)
        return _judge(state, train_loss, val_loss, config)

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
        return _train_on_fresh(state, loss_key, estimator, config)
    size = state.rows.shape[0]
    batch_size = min(config.batch_size or min(500, max(50, size // 100)), size)
    draw = jax.random.uniform(shuffle_key, (size,))
    draw = jnp.where(jnp.arange(size) < state.num_train, draw, 2.0)
    order = state.rows[jnp.argsort(draw)]
    num_batches = -(-state.num_train // batch_size)

    def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
        state, total = carry
        # The last batch is filled up from the front of this epoch's order.
        place = i * batch_size + jnp.arange(batch_size)
        batch = _take(sims, order[place % state.num_train])
        once = jnp.arange(batch_size) < state.num_train
        batch = batch._replace(weight=jnp.where(once, batch.weight, 0.0))
        # The loss is a mean over the batch; a heavy batch counts for more.
        share = jnp.mean(batch.weight, where=once) / state.mean_weight
        state, loss = _update(
            state, jax.random.fold_in(loss_key, i), batch, share, estimator, config
        )
        return state, total + loss

    start = (state, jnp.zeros((), state.best_loss.dtype))
    state, total = jax.lax.fori_loop(0, num_batches, step, start)
    return state, total / num_batches


def _train_on_fresh(
    state: TrainState, key: Array, estimator: Estimator, config: TrainConfig
) -> tuple[TrainState, Array]:
    """Steps on batches that are simulated for them; the mean training loss."""
    source, batch_size = config.source, config.batch_size
    assert source is not None
    assert batch_size is not None

    def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
        state, total = carry
        sims_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
        batch = source.simulate(sims_key, batch_size)
        share = jnp.mean(batch.weight) / state.mean_weight
        state, loss = _update(state, loss_key, batch, share, estimator, config)
        return state, total + loss

    start = (state, jnp.zeros((), state.best_loss.dtype))
    state, total = jax.lax.fori_loop(0, source.steps_per_epoch, step, start)
    return state, total / source.steps_per_epoch


def _update(
    state: TrainState,
    key: Array,
    batch: Simulations,
    share: Array,
    estimator: Estimator,
    config: TrainConfig,
) -> tuple[TrainState, Array]:
    """One optimizer step; a step with non-finite gradients changes nothing."""

    def loss_of(net: PyTree) -> Array:
        assert estimator.loss is not None
        return share * estimator.loss(Params(net, state.stats), key, batch)

    loss, grads = jax.value_and_grad(loss_of)(state.net)
    updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.net)
    rate = state.decay
    if config.optimizer is None:
        warmup = jnp.minimum(1.0, (state.step + 1) / WARMUP_STEPS)
        rate = rate * warmup * state.learning_rate
        # How much regularisation is best depends on the problem: it falls as well,
        # and where less of it overfits, the validation loss keeps what was before.
        shrinkage = state.decay * state.weight_decay
        updates = jax.tree.map(
            lambda u, p, decays: -u - shrinkage * decays * p,
            updates,
            state.net,
            decay_mask(state.net),
        )
    net = jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), state.net, updates)
    memory = jnp.minimum(AVERAGE_DECAY, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(
        lambda a, p: (memory * a + (1.0 - memory) * p).astype(a.dtype),
        state.average,
        net,
    )
    finite = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(loss)
    new = (net, average, opt_state)
    old = (state.net, state.average, state.opt_state)
    net, average, opt_state = jax.tree.map(partial(jnp.where, finite), new, old)
    state = state._replace(
        net=net,
        average=average,
        opt_state=opt_state,
        step=state.step + 1,
        num_skipped=state.num_skipped + ~finite,
    )
    return state, loss


def _validation_loss(
    state: TrainState, sims: Simulations, estimator: Estimator, config: TrainConfig
) -> Array:
    """Loss of the averaged parameters on the validation rows, same key every time."""
    size = state.rows.shape[0]
    capacity = max(1, math.ceil(config.validation_fraction * size))
    batch_size = min(EVALUATION_BATCH, capacity)
    params = Params(state.average, state.stats)

    def chunk(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, weight = carry
        place = state.num_train + i * batch_size + jnp.arange(batch_size)
        batch = _take(sims, state.rows[jnp.minimum(place, size - 1)])
        once = place < state.num_valid
        batch = batch._replace(weight=jnp.where(once, batch.weight, 0.0))
        here = jnp.sum(batch.weight)
        assert estimator.loss is not None
        loss = estimator.loss(params, jax.random.key(i), batch)
        return total + here * loss, weight + here

    zero = jnp.zeros((), state.best_loss.dtype)
    num_chunks = -(-capacity // batch_size)
    total, weight = jax.lax.fori_loop(0, num_chunks, chunk, (zero, zero))
    return total / jnp.where(weight > 0, weight, 1.0)


def _judge(
    state: TrainState, train_loss: Array, val_loss: Array, config: TrainConfig
) -> TrainState:
    """Record the epoch, keep the best parameters, decay or stop when stalled."""
    better = val_loss < state.best_loss
    keep_better = partial(jnp.where, better)
    stalled = jnp.where(better, 0, state.stalled + 1)
    decay_now = stalled >= config.patience
    best_net = jax.tree.map(keep_better, state.average, state.best_net)
    # A lower learning rate starts again from the best parameters.
    restart = partial(jnp.where, decay_now)
    return state._replace(
        net=jax.tree.map(restart, best_net, state.net),
        average=jax.tree.map(restart, best_net, state.average),
        best_net=best_net,
        best_loss=jnp.where(better, val_loss, state.best_loss),
        best_epoch=jnp.where(better, state.epoch, state.best_epoch),
        stalled=jnp.where(decay_now, 0, stalled),
        decay=jnp.where(decay_now, DECAY_FACTOR * state.decay, state.decay),
        num_decays=state.num_decays + decay_now,
        train_loss=state.train_loss.at[state.epoch].set(train_loss),
        val_loss=state.val_loss.at[state.epoch].set(val_loss),
        epoch=state.epoch + 1,
    )


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    if config.optimizer is not None:
        return config.optimizer
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.scale_by_adam())


def decay_mask(net: PyTree) -> PyTree:
    """Which leaves weight decay is for: weights, not biases, stacked ones included.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.training.fit import decay_mask
        >>> decay_mask({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros((2, 3))})
        {'bias': False, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], leaf: Array) -> bool:
        return leaf.ndim > 1 and "bias" not in jax.tree_util.keystr(path[-1:])

    return jax.tree_util.tree_map_with_path(decays, net)


def _take(sims: Simulations, rows: Array) -> Simulations:
    return jax.tree.map(lambda leaf: leaf[rows], sims)
