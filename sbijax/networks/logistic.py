"""Logistic regression of whole numbers, the baseline a categorical density starts from.

    log P(y_d = k | f) = a_dk + b_dk^T f + const,

with the penalty of a standard normal prior on every coefficient.  Where the entries
of y are independent and follow a generalised linear model this is all there is to
learn.

Reference:
    Boehning. Multinomial logistic regression algorithm, 1992.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array
from sbijax.networks.linear import exact_matmul, stride

__all__ = ["fit_logistic", "log_softmax", "one_hot", "to_logits"]

_MAX_STEPS = 40
_MIN_LENGTH = 0.1
_TOLERANCE = 0.01  # nats over all rows
_MAX_FEATURES = 512


class _Search(NamedTuple):
    """Where the fit is: `value`, `length` of the next step and `rising` are `[D]`."""

    coefficients: Array
    value: Array
    length: Array
    rising: Array
    num_steps: Array


def fit_logistic(
    features: Array, y: Array, weight: Array, sizes: Sequence[int]
) -> Array:
    """Fit the coefficients `[D, K, 1 + F]`, with K the largest number of values.

    Newton's method, of which a step is halved where it does not help.  The blocks of
    its Hessian that couple the values of one entry are left out and those on the
    diagonal doubled, which bounds it: for two values the steps are the exact ones, for
    more they are shorter.  With more than 512 features the logits are constants.  Of
    more than 50 million numbers in a copy, every second row is used, or fewer.

    Args:
        features: `[N, F]`, of order one.
        y: whole numbers `[N, D]`; others count as missing.
        weight: `[N]`, in any unit; rows of weight 0 must be finite and have no effect.
        sizes: number of values of every entry of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks.logistic import fit_logistic, to_logits
        >>> f = jnp.linspace(-3.0, 3.0, 100)[:, None]
        >>> coefficients = fit_logistic(f, (f > 0.0) * 1.0, jnp.ones(100), [2])
        >>> to_logits(coefficients, jnp.array([1.0])).argmax(axis=-1).tolist()
        [1]
    """
    step = stride(len(y), max(features.shape[1], len(sizes) * max(sizes)))
    features, y, weight = (a[::step] for a in (features, y, weight))
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    weight = weight * jnp.sum(weight > 0) / total
    used = features if features.shape[1] <= _MAX_FEATURES else features[:, :0]
    inputs = jnp.concatenate([jnp.ones_like(weight)[:, None], used], axis=1)
    hot = jax.vmap(lambda row: one_hot(row, sizes))(y)
    counted = weight[:, None, None] * jnp.sum(hot, axis=2, keepdims=True)
    eye = jnp.eye(inputs.shape[1], dtype=inputs.dtype)
    exists = _exists(sizes)[:, :, None]

    def log_probs(coefficients: Array) -> Array:
        flat = coefficients.reshape(-1, inputs.shape[1])
        logits = exact_matmul(inputs, flat.T).reshape(hot.shape)
        return log_softmax(logits, sizes)

    def objective(coefficients: Array) -> Array:
        chosen = jnp.where(hot > 0, log_probs(coefficients), 0.0)
        penalty = jnp.sum(coefficients**2, axis=(1, 2)) / 2.0
        return exact_matmul(weight[None], jnp.sum(chosen, axis=2))[0] - penalty

    def direction(coefficients: Array) -> Array:
        p = jnp.exp(log_probs(coefficients))
        curvature = 2.0 * counted * p * (1.0 - p)
        gap = counted * (hot - p)

        def solve(column: tuple[Array, Array, Array]) -> Array:
            bend, pull, old = column
            hessian = exact_matmul(inputs.T, bend[:, None] * inputs) + eye
            gradient = exact_matmul(inputs.T, pull) - old
            return jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")

        columns = (
            curvature.reshape(len(inputs), -1).T,
            gap.reshape(len(inputs), -1).T,
            coefficients.reshape(-1, len(eye)),
        )
        move = jax.lax.map(solve, columns).reshape(coefficients.shape)
        # What all values of an entry share costs a penalty and tells nothing.
        mean = jnp.sum(exists * move, axis=1, keepdims=True)
        mean = mean / exists.sum(axis=1, keepdims=True)
        return exists * (move - mean)

    def advance(state: _Search) -> _Search:
        old, value, length, _, num_steps = state
        new = old + length[:, None, None] * direction(old)
        new_value = objective(new)
        better = new_value >= value
        far = jnp.where(better, new_value - value > _TOLERANCE, length > _MIN_LENGTH)
        return _Search(
            jnp.where(better[:, None, None], new, old),
            jnp.where(better, new_value, value),
            jnp.where(better, 1.0, length / 2.0),
            state.rising & far,
            num_steps + 1,
        )

    def is_open(state: _Search) -> Array:
        return jnp.any(state.rising) & (state.num_steps < _MAX_STEPS)

    start = jnp.zeros((*hot.shape[1:], len(eye)), inputs.dtype)
    length = jnp.ones(len(sizes), inputs.dtype)
    state = _Search(start, -jnp.inf * length, length, length > 0, jnp.zeros((), int))
    coefficients = jax.lax.while_loop(is_open, advance, state).coefficients
    unused = features.shape[1] - used.shape[1]
    return jnp.pad(coefficients, ((0, 0), (0, 0), (0, unused)))


def to_logits(coefficients: Array, features: Array) -> Array:
    """Logits `[D, K]` of one example with features `[F]`."""
    slopes = coefficients[:, :, 1:]
    return coefficients[:, :, 0] + exact_matmul(slopes, features[:, None])[:, :, 0]


def one_hot(y: Array, sizes: Sequence[int]) -> Array:
    """`[D, K]` of one y `[D]`; no entry of a row is 1 where y has none of its values.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks.logistic import one_hot
        >>> one_hot(jnp.array([1.0, 1.5]), [2, 3]).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    hot = (y[:, None] == jnp.arange(max(sizes))) & _exists(sizes)
    return hot.astype(y.dtype)


def log_softmax(logits: Array, sizes: Sequence[int]) -> Array:
    """Logarithms of probabilities `[..., D, K]`, -inf for values that do not exist."""
    return jax.nn.log_softmax(jnp.where(_exists(sizes), logits, -jnp.inf), axis=-1)


def _exists(sizes: Sequence[int]) -> np.ndarray:
    return np.arange(max(sizes)) < np.array(sizes)[:, None]
