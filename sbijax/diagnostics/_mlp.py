"""The classifier of the benchmark as one compiled program.

An MLP with two layers of H rectified units and a logistic output, trained like
scikit-learn's `MLPClassifier` with all defaults, on rows of weight 1 only:
weights and biases uniform in +-sqrt(6 / (fan_in + fan_out)), batches of 200,
Adam, and the mean over a batch of n rows of

    -log p(y | x) + alpha / (2 n) sum_l ||W_l||^2.

Training ends when the loss of more than 10 epochs in a row was not below the best
by `tol`.  Features come first and rows last, [H, B]: a CPU multiplies matrices of
this shape twice as fast as [B, H].  The gradients are written out because reverse
mode sums biases and penalty term by term, which XLA does not vectorise.

Reference:
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array

__all__ = ["Rows", "Weights", "fit", "init", "logits"]

_BATCH_SIZE = 200
_ALPHA = 1e-4
_LEARNING_RATE, _BETA_1, _BETA_2, _EPSILON = 1e-3, 0.9, 0.999, 1e-8
_TOL, _PATIENCE = 1e-4, 10


class Rows(NamedTuple):
    """Labelled rows: x `[N, D]`, label `[N]` 0 or 1, weight `[N]` 0 or 1."""

    x: Array
    label: Array
    weight: Array


class Weights(NamedTuple):
    """Weights `[out, in]` and biases of the three layers; the last has one unit."""

    w1: Array
    b1: Array
    w2: Array
    b2: Array
    w3: Array
    b3: Array


class _Adam(NamedTuple):
    weights: Weights
    mean: Weights
    square: Weights
    step: Array


class _State(NamedTuple):
    adam: _Adam
    order: Array
    epoch: Array
    best_loss: Array
    num_stalled: Array


def init(key: Array, num_dims: int, width: int) -> Weights:
    """Draw weights and biases, both with the bounds of their layer.

    All are drawn at once: each call of a generator takes time to compile.
    """
    layers = [(num_dims, (width,)), (width, (width,)), (width, ())]
    shapes, bounds = [], []
    for fan_in, out in layers:
        shapes += [(*out, fan_in), out]
        bounds += [float(np.sqrt(6.0 / (fan_in + np.prod(out))))] * 2
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    draws = jax.random.uniform(key, (ends[-1],), jnp.float32, minval=-1.0)
    parts = zip(bounds, jnp.split(draws, ends[:-1]), shapes, strict=True)
    return Weights(*(bound * part.reshape(shape) for bound, part, shape in parts))


def logits(weights: Weights, x: Array) -> Array:
    """Log-odds `[N]` of label 1 for rows `[N, D]`."""
    return _forward(weights, x.T)[2]


def fit(
    key: Array, weights: Weights, rows: Rows, mix: Array, *, max_epochs: Array
) -> tuple[Weights, Array]:
    """Train until the loss stalls; a fit that is done waits under `jax.vmap`.

    Rows are shuffled by moving the order on by a random number of places and
    applying one fixed random permutation.  That is a new order in each epoch at
    a tenth of the price of a sort, which would take half of the time.

    Args:
        key: PRNG key, for the order of the rows.
        weights: where to start.
        rows: training data in random order; rows of weight 0 have no effect.
        mix: `[N]` a random permutation, which fits may share.
        max_epochs: epochs at most, a scalar.

    Returns:
        The weights after the last epoch, and the number of epochs.
    """
    num_rows = len(mix)
    zeros = jax.tree.map(jnp.zeros_like, weights)

    def go_on(state: _State) -> Array:
        return (state.num_stalled <= _PATIENCE) & (state.epoch < max_epochs)

    def run_epoch(state: _State) -> _State:
        epoch_key = jax.random.fold_in(key, state.epoch)
        shift = jax.random.bits(epoch_key) % num_rows
        order = jnp.roll(state.order, shift)[mix]
        adam, losses = jax.lax.scan(_step, state.adam, _batches(rows, order))
        loss = jnp.sum(losses) / jnp.sum(rows.weight)
        stalled = ~(loss <= state.best_loss - _TOL)
        return _State(
            adam=adam,
            order=order,
            epoch=state.epoch + 1,
            best_loss=jnp.minimum(loss, state.best_loss),
            num_stalled=jnp.where(stalled, state.num_stalled + 1, 0),
        )

    start = _State(
        adam=_Adam(weights, zeros, zeros, jnp.zeros((), jnp.float32)),
        order=jnp.arange(num_rows),
        epoch=jnp.zeros((), jnp.int32),
        best_loss=jnp.full((), jnp.inf, jnp.float32),
        num_stalled=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(go_on, run_epoch, start)
    return end.adam.weights, end.epoch


def _batches(rows: Rows, order: Array) -> Rows:
    """Rows in order, x as `[K, D, B]`, the rest `[K, B]`; the last batch padded."""
    num_rows = len(order)
    size = min(_BATCH_SIZE, num_rows)
    num_batches = -(-num_rows // size)
    order = jnp.pad(order, (0, num_batches * size - num_rows))
    real = jnp.arange(len(order)) < num_rows
    x = rows.x[order].reshape(num_batches, size, -1)
    return Rows(
        x=jnp.swapaxes(x, 1, 2),
        label=rows.label[order].reshape(num_batches, size),
        weight=(rows.weight[order] * real).reshape(num_batches, size),
    )


def _step(adam: _Adam, batch: Rows) -> tuple[_Adam, Array]:
    """One step of Adam; returns the loss times the number of rows."""
    loss, grads = _loss_and_grads(adam.weights, batch)
    step = adam.step + 1
    rate = _LEARNING_RATE * jnp.sqrt(1 - _BETA_2**step) / (1 - _BETA_1**step)
    mean = jax.tree.map(lambda m, g: _BETA_1 * m + (1 - _BETA_1) * g, adam.mean, grads)
    square = jax.tree.map(
        lambda v, g: _BETA_2 * v + (1 - _BETA_2) * g**2, adam.square, grads
    )
    weights = jax.tree.map(
        lambda w, m, v: w - rate * m / (jnp.sqrt(v) + _EPSILON),
        adam.weights,
        mean,
        square,
    )
    return _Adam(weights, mean, square, step), loss


def _forward(weights: Weights, x: Array) -> tuple[Array, Array, Array]:
    """Units of both layers `[H, B]` and log-odds `[B]` for x `[D, B]`."""
    h1 = jax.nn.relu(weights.w1 @ x + weights.b1[:, None])
    h2 = jax.nn.relu(weights.w2 @ h1 + weights.b2[:, None])
    return h1, h2, weights.w3 @ h2 + weights.b3


def _loss_and_grads(weights: Weights, batch: Rows) -> tuple[Array, Weights]:
    """Sum of the loss over the rows of a batch, gradient of its mean."""
    h1, h2, z = _forward(weights, batch.x)
    count = jnp.maximum(jnp.sum(batch.weight), 1.0)
    w1, w2, w3 = weights.w1, weights.w2, weights.w3
    norm = jnp.vdot(w1, w1) + jnp.vdot(w2, w2) + jnp.vdot(w3, w3)
    loss = jnp.vdot(batch.weight, jax.nn.softplus(z) - batch.label * z)

    dz = batch.weight * (jax.nn.sigmoid(z) - batch.label) / count
    d2 = jnp.where(h2 > 0, w3[:, None] * dz, 0.0)
    # A transpose that is written out costs a CPU less than one inside the product.
    w2_transposed = jax.lax.optimization_barrier(w2.T + 0.0)
    d1 = jnp.where(h1 > 0, w2_transposed @ d2, 0.0)
    ones = jnp.ones_like(dz)
    decay = _ALPHA / count
    grads = Weights(
        w1=d1 @ batch.x.T + decay * w1,
        b1=d1 @ ones,
        w2=d2 @ h1.T + decay * w2,
        b2=d2 @ ones,
        w3=h2 @ dz + decay * w3,
        b3=jnp.sum(dz),
    )
    return loss + 0.5 * _ALPHA * norm, grads
