"""What happens in an epoch: optimizer steps, validation, and what follows from it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sbijax.base import (
    Array,
    DiffusionEstimator,
    Estimator,
    Params,
    PyTree,
    Simulations,
)
from sbijax.training.flat import Flat, flatten
from sbijax.training.records import TrainConfig, TrainState

__all__ = [
    "decay_mask",
    "default_batch_size",
    "default_learning_rate",
    "default_weight_decay",
    "end_epoch",
    "rates",
    "start_optimizer",
    "train_on_fresh",
    "train_on_rows",
]

WARMUP_STEPS = 100
CLIP_NORM = 5.0
DECAY_FACTOR = 0.3
RELAXATION = 0.2
REINFORCEMENT = 40.0
AVERAGE_DECAY = 0.99
PATIENCE_EPOCHS, PATIENCE_OF_NOISY_LOSS, PATIENCE_STEPS = 5, 10, 100

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8  # of Adam


class Adam(NamedTuple):
    """State of the default optimizer: steps taken, moving averages of the gradient.

    Reference:
        Kingma, Ba. Adam: a method for stochastic optimization, 2015.
    """

    num_steps: Array
    mean: Flat
    square: Flat


def default_batch_size(size: int) -> int:
    """Rows of a step: N / 100 within 50 and 500."""
    return min(500, max(50, size // 100))


def _batch_size(size: int, config: TrainConfig) -> int:
    return min(config.batch_size or default_batch_size(size), size)


def default_learning_rate(estimator: Estimator) -> float:
    """5e-3; of flow and score matching 2e-3.

    Their loss is mostly noise, and a little of it says all that x tells of theta:
    larger steps may cost more than there is to gain, and training never leaves its
    start.
    """
    return 2e-3 if _is_noisy(estimator) else 5e-3


def default_weight_decay(size: int) -> float:
    """To begin with, for N rows 25 / N^.5, at most 2: few rows need a lot."""
    return min(2.0, 25.0 / size**0.5)


def rates(state: TrainState, config: TrainConfig) -> tuple[Array, Array]:
    """What the learning rate and the weight decay are multiplied with by now.

    How much regularisation is best depends on the problem, so it starts high.  The
    first fall is that of the weight decay alone, to a fifth; from then on both fall.
    Where less of it was in vain, `_judge` makes it larger than at first.
    """
    falls = state.num_decays.astype(state.best_loss.dtype)
    decays = (config.optimizer is None) & (state.weight_decay > 0)
    rate = DECAY_FACTOR ** jnp.maximum(falls - decays, 0.0)
    return rate, jnp.where(falls > 0, RELAXATION * rate, 1.0)


def train_on_rows(
    state: TrainState,
    sims: Simulations,
    order: Array,
    num_train: Array,
    key: Array,
    *,
    estimator: Estimator,
    config: TrainConfig,
) -> tuple[TrainState, Array, Array]:
    """Steps on the first `num_train` rows of an order `[N]`.

    Returns:
        The state, the sum of the losses of all steps, and the number of steps.
    """
    size = order.shape[0]
    batch_size = _batch_size(size, config)
    num_batches = -(-num_train // batch_size)

    def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
        state, total = carry
        # The last batch is filled up from the front of this epoch's order.
        place = i * batch_size + jnp.arange(batch_size)
        batch = _take(sims, order[place % num_train])
        once = jnp.arange(batch_size) < num_train
        batch = batch._replace(weight=jnp.where(once, batch.weight, 0.0))
        # The loss is a mean over the batch; a heavy batch counts for more.
        share = jnp.mean(batch.weight, where=once) / state.mean_weight
        state, loss = _update(
            state, jax.random.fold_in(key, i), batch, share, estimator, config
        )
        return state, total + loss

    start = (state, jnp.zeros((), state.best_loss.dtype))
    state, total = jax.lax.fori_loop(0, num_batches, step, start)
    return state, total, num_batches


def train_on_fresh(
    state: TrainState, key: Array, *, estimator: Estimator, config: TrainConfig
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

    # The gradient of the parts: that of the vector would be a sum of padded parts.
    loss, parts = jax.value_and_grad(loss_of)(state.net.tree())
    grads = flatten(parts)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    if config.optimizer is None:
        net, opt_state = _advance_by_default(state, grads, norm, finite, config)
    else:
        net, opt_state = _advance_by(state, grads, finite, config)
    memory = jnp.minimum(AVERAGE_DECAY, (1.0 + state.step) / (10.0 + state.step))
    state = state._replace(
        net=net,
        average=_blend(state.average, net, finite * (1.0 - memory)),
        opt_state=opt_state,
        step=state.step + 1,
        num_skipped=state.num_skipped + ~finite,
    )
    return state, loss


def _advance_by(
    state: TrainState, grads: Flat, finite: Array, config: TrainConfig
) -> tuple[Flat, PyTree]:
    """A step of the optimizer of the settings, which may treat leaves differently."""
    assert config.optimizer is not None
    updates, opt_state = config.optimizer.update(
        grads.tree(), state.opt_state, state.net.tree()
    )
    rate, _ = rates(state, config)
    net = jax.tree.map(
        lambda p, u: (p + rate * u).astype(p.dtype), state.net, flatten(updates)
    )
    return jax.tree.map(
        partial(jnp.where, finite), (net, opt_state), (state.net, state.opt_state)
    )


def _advance_by_default(
    state: TrainState, grads: Flat, norm: Array, finite: Array, config: TrainConfig
) -> tuple[Flat, PyTree]:
    """A step of Adam on clipped gradients, with decoupled weight decay.

    Every vector is read and written once: a step that is not finite moves it by zero.
    """
    adam: Adam = state.opt_state
    clip = jnp.minimum(1.0, CLIP_NORM / jnp.maximum(norm, CLIP_NORM))
    grads = jax.tree.map(lambda g: jnp.where(finite, clip * g, 0.0), grads)
    square = jax.tree.map(jnp.square, grads)
    moments = (
        _blend(adam.mean, grads, finite * (1.0 - MEAN_DECAY)),
        _blend(adam.square, square, finite * (1.0 - SQUARE_DECAY)),
    )
    # Without it they would be computed again for the parameters, from copies.
    mean, square = jax.lax.optimization_barrier(moments)
    num_steps = adam.num_steps + finite
    rate, shrinkage = rates(state, config)
    warmup = jnp.minimum(1.0, (state.step + 1) / WARMUP_STEPS)
    rate = finite * rate * warmup * state.learning_rate
    shrinkage = shrinkage * state.weight_decay
    num_seen = jnp.maximum(num_steps, 1)
    of_mean = 1.0 - MEAN_DECAY**num_seen
    of_square = 1.0 - SQUARE_DECAY**num_seen

    def move(p: Array, m: Array, v: Array, decays: Array) -> Array:
        step = (m / of_mean) / (jnp.sqrt(v / of_square) + EPSILON)
        return (p - rate * (step + shrinkage * decays * p)).astype(p.dtype)

    parts = state.net.tree()
    decays = flatten(jax.tree.map(jnp.full_like, parts, decay_mask(parts)))
    net = jax.tree.map(move, state.net, mean, square, decays)
    return jax.lax.optimization_barrier(net), Adam(num_steps, mean, square)


def _blend(old: Flat, new: Flat, share: Array) -> Flat:
    return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), old, new)


def end_epoch(
    state: TrainState,
    sims: Simulations,
    train_loss: Array,
    *,
    capacity: int,
    estimator: Estimator,
    config: TrainConfig,
) -> TrainState:
    """Validate on at most `capacity` rows and judge; without any, on the training."""
    val_loss = _validation_loss(state, sims, capacity, estimator, config)
    val_loss = jnp.where(state.num_valid > state.num_train, val_loss, train_loss)
    return _judge(state, train_loss, val_loss, estimator, config)


def _validation_loss(
    state: TrainState,
    sims: Simulations,
    capacity: int,
    estimator: Estimator,
    config: TrainConfig,
) -> Array:
    """Loss of the averaged parameters on the validation rows, same key every time.

    In batches of the size of those of the training, where there are as many rows: a
    loss may depend on how many it sees.
    """
    size = state.rows.shape[0]
    batch_size = min(_batch_size(size, config), capacity)
    params = Params(state.average.tree(), state.stats)

    def chunk(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, weight = carry
        place = state.num_train + i * batch_size + jnp.arange(batch_size)
        batch = _take(sims, state.rows[jnp.minimum(place, size - 1)])
        once = place < state.num_valid
        batch = batch._replace(weight=jnp.where(once, batch.weight, 0.0))
        here = jnp.sum(batch.weight)
        assert estimator.loss is not None
        loss = estimator.loss(params, jax.random.key(i), batch)
        # Of rows that all failed a loss may be NaN.
        return total + jnp.where(here > 0, here * loss, 0.0), weight + here

    zero = jnp.zeros((), state.best_loss.dtype)
    num_chunks = -(-capacity // batch_size)
    total, weight = jax.lax.fori_loop(0, num_chunks, chunk, (zero, zero))
    return total / jnp.where(weight > 0, weight, 1.0)


def _judge(
    state: TrainState,
    train_loss: Array,
    val_loss: Array,
    estimator: Estimator,
    config: TrainConfig,
) -> TrainState:
    """Record the epoch, keep the best parameters, decay or stop when stalled."""
    better = val_loss < state.best_loss
    keep_better = partial(jnp.where, better)
    stalled = jnp.where(better, 0, state.stalled + 1)
    decay_now = _has_waited(stalled, state, estimator, config)
    best_net = jax.tree.map(keep_better, state.average, state.best_net)
    best_epoch = jnp.where(better, state.epoch, state.best_epoch)
    # Less of it than at first was in vain: from here on there is more.
    in_vain = (state.num_decays == 1) & (state.epoch - best_epoch > stalled)
    more = jnp.where(decay_now & in_vain, REINFORCEMENT / RELAXATION, 1.0)
    # A lower learning rate starts again from the best parameters.
    restart = partial(jnp.where, decay_now)
    return state._replace(
        net=jax.tree.map(restart, best_net, state.net),
        average=jax.tree.map(restart, best_net, state.average),
        best_net=best_net,
        best_loss=jnp.where(better, val_loss, state.best_loss),
        best_epoch=best_epoch,
        weight_decay=(more * state.weight_decay).astype(state.weight_decay.dtype),
        stalled=jnp.where(decay_now, 0, stalled),
        num_decays=state.num_decays + decay_now,
        train_loss=state.train_loss.at[state.epoch].set(train_loss),
        val_loss=state.val_loss.at[state.epoch].set(val_loss),
        epoch=state.epoch + 1,
    )


def _has_waited(
    stalled: Array, state: TrainState, estimator: Estimator, config: TrainConfig
) -> Array:
    """Whether these epochs without progress are as many as patience has."""
    if config.patience is not None:
        return stalled >= config.patience
    noisy = _is_noisy(estimator)
    num_epochs = PATIENCE_OF_NOISY_LOSS if noisy else PATIENCE_EPOCHS
    # The average of the parameters has hardly moved before so many steps.
    num_steps = stalled * state.step / (state.epoch + 1)
    return (stalled >= num_epochs) & (num_steps >= PATIENCE_STEPS)


def _is_noisy(estimator: Estimator) -> bool:
    """Whether most of its loss is noise, whatever it has learned."""
    return isinstance(estimator, DiffusionEstimator)


def start_optimizer(net: Flat, config: TrainConfig) -> PyTree:
    """The first state of the optimizer of the settings, or of the default one."""
    if config.optimizer is not None:
        return config.optimizer.init(net.tree())
    zeros = jax.tree.map(jnp.zeros_like, net)
    return Adam(jnp.zeros((), int), zeros, zeros)


def decay_mask(net: PyTree) -> PyTree:
    """Which leaves weight decay is for: weights, not biases, stacked ones included.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.training.steps import decay_mask
        >>> decay_mask({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros((2, 3))})
        {'bias': False, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], leaf: Array) -> bool:
        return leaf.ndim > 1 and "bias" not in jax.tree_util.keystr(path[-1:])

    return jax.tree_util.tree_map_with_path(decays, net)


def _take(sims: Simulations, rows: Array) -> Simulations:
    return jax.tree.map(lambda leaf: leaf[rows], sims)
