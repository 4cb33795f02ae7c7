"""Distances between what was simulated and what was observed.

    d(s, s_o) = (sum_k |(s_k - s_ok) / sigma_k|^p)^(1 / p)

on vectors of summaries, with scales sigma_k fitted to simulations, and distances of
whole samples for i.i.d. trials, which need no summary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree, Trials
from sbijax.checks import check_count, check_positive, describe
from sbijax.data import flatten, holds_trials, is_trials
from sbijax.noise import normal

__all__ = ["Distance", "as_distance", "euclidean", "mmd", "p_norm", "wasserstein"]

_NORMAL_MAD = 0.6744897501960817  # median |e| of a standard normal
_NUM_DIRECTIONS = 32


class Distance(NamedTuple):
    """How far one simulation is from the observation.

    `fit(rows, weight) -> scale` for summaries with leaves `[n, ...]` and `[n]` weights,
    0 for failed ones, and `between(scale, s, observed) -> scalar` for one.
    `adapts` tells that the scales are fitted again in every population.
    """

    fit: Callable[[PyTree, Array], PyTree]
    between: Callable[[PyTree, PyTree, PyTree], Array]
    adapts: bool = False


def euclidean(*, adaptive: bool = False) -> Distance:
    """The Euclidean distance of scaled summaries, see `p_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import euclidean
        >>> distance = euclidean()
        >>> scale = distance.fit(jnp.array([[0.0], [1.0], [3.0]]), jnp.ones(3))
        >>> float(distance.between(scale, jnp.array([3.0]), jnp.array([3.0])))
        0.0
    """
    return p_norm(2.0, adaptive=adaptive)


def p_norm(p: float, *, adaptive: bool = False) -> Distance:
    """The p-norm of differences over their scales.

    The scale of an entry is the median absolute deviation of the simulations, over
    that of a standard normal; entries that do not vary are not scaled.

    Args:
        p: the exponent, at least 1; infinite for the largest difference.
        adaptive: fit the scales to all simulations of each population, rejected ones
            too, instead of once to those that `init` is given.  They shrink, and
            tolerances are in units of the last ones.

    Raises:
        TypeError: `p` is not a number.
        ValueError: `p` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import p_norm
        >>> scale = jnp.ones(2)
        >>> float(p_norm(1.0).between(scale, jnp.array([1.0, 2.0]), jnp.zeros(2)))
        3.0

    Reference:
        Prangle. Adapting the ABC distance function, 2017.
    """
    p = math.inf if p == math.inf else check_positive(p, "p")
    if p < 1.0:
        raise ValueError(f"p must be at least 1, got {p}.")

    def fit(rows: PyTree, weight: Array) -> Array:
        values = jax.vmap(_flatten)(rows)
        values = jnp.where(weight[:, None] > 0, values, jnp.nan)
        values = jnp.where(jnp.isfinite(values), values, jnp.nan)
        away = jnp.abs(values - jnp.nanmedian(values, axis=0))
        scale = jnp.nanmedian(away, axis=0) / _NORMAL_MAD
        return jnp.where(scale > 0, scale, 1.0)

    def between(scale: Array, s: PyTree, observed: PyTree) -> Array:
        return jnp.linalg.norm((_flatten(s) - _flatten(observed)) / scale, ord=p)

    return Distance(fit, between, bool(adaptive))


def wasserstein(*, num_directions: int = _NUM_DIRECTIONS) -> Distance:
    """The 1-Wasserstein distance of two samples: of trials or sets.

    For rows of one number it is the area between the two distribution functions;
    for rows of several, its mean over directions that are spread evenly at random
    (sliced Wasserstein).  Samples of different size are fine.

    Args:
        num_directions: directions for rows of several numbers.

    Returns:
        A distance between `Trials`, or arrays `[T]` or `[T, d]`.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: no directions; (when called) data that are no sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import wasserstein
        >>> distance = wasserstein()
        >>> x = jnp.arange(4.0)
        >>> float(distance.between(distance.fit(x[None], jnp.ones(1)), x + 2.0, x))
        2.0

    Reference:
        Bernton, Jacob, Gerber, Robert. Approximate Bayesian computation with the
        Wasserstein distance, 2019.
    """
    num_directions = check_count(num_directions, "num_directions")

    def between(scale: PyTree, s: PyTree, observed: PyTree) -> Array:
        (a, mask_a), (b, mask_b) = _sample_of(s), _sample_of(observed)
        if a.shape[1] == 1:
            return _area(a[:, 0], mask_a, b[:, 0], mask_b)
        key = jax.random.key(0)
        directions = normal(key, (a.shape[1], num_directions), a.dtype)
        directions = directions / jnp.linalg.norm(directions, axis=0)
        areas = jax.vmap(_area, (1, None, 1, None))(
            a @ directions, mask_a, b @ directions, mask_b
        )
        return jnp.mean(areas)

    return Distance(_no_scale, between)


def mmd(*, length_scale: float | None = None) -> Distance:
    """The maximum mean discrepancy of two samples, of trials or sets.

    The kernel is exp(-|a - b|^2 / (2 l^2)).

    Args:
        length_scale: l, in the units of the rows; by default the median distance
            between rows of the observation.

    Returns:
        A distance between `Trials`, or arrays `[T]` or `[T, d]`.

    Raises:
        TypeError: a length that is not a number.
        ValueError: a length that is not positive; (when called) data that are no
            sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import mmd
        >>> x = jnp.arange(4.0)
        >>> float(mmd(length_scale=1.0).between({}, x, x))
        0.0

    Reference:
        Park, Jitkrittum, Sejdinovic. K2-ABC: approximate Bayesian computation with
        kernel embeddings, 2016.
    """
    if length_scale is not None:
        length_scale = check_positive(length_scale, "length_scale")

    def between(scale: PyTree, s: PyTree, observed: PyTree) -> Array:
        (a, mask_a), (b, mask_b) = _sample_of(s), _sample_of(observed)
        share_a, share_b = mask_a / jnp.sum(mask_a), mask_b / jnp.sum(mask_b)
        length = jnp.asarray(0.0 if length_scale is None else length_scale)
        if length_scale is None:
            apart = jnp.sqrt(_squares(b, b))
            pairs = mask_b[:, None] & mask_b & ~jnp.eye(len(b), dtype=bool)
            length = jnp.nanmedian(jnp.where(pairs, apart, jnp.nan))
            length = jnp.where(length > 0, length, 1.0)

        def mean(u: Array, w: Array, v: Array, x: Array) -> Array:
            return w @ jnp.exp(-0.5 * _squares(u, v) / length**2) @ x

        square = (
            mean(a, share_a, a, share_a)
            - 2.0 * mean(a, share_a, b, share_b)
            + mean(b, share_b, b, share_b)
        )
        return jnp.sqrt(jnp.maximum(square, 0.0))

    return Distance(_no_scale, between)


def as_distance(value: Distance | Callable[[PyTree, PyTree], Array]) -> Distance:
    """A `Distance`, or a function `(s, observed) -> scalar` made one.

    Raises:
        TypeError: it is neither.
        ValueError: (when called) the function returns no scalar.
    """
    if isinstance(value, Distance):
        return value
    if not callable(value):
        raise TypeError(
            "distance must be a Distance, such as abc.euclidean(), or a function "
            f"(s, observed) -> scalar; got {type(value).__name__}."
        )

    def between(scale: PyTree, s: PyTree, observed: PyTree) -> Array:
        found = value(s, observed)
        if jnp.shape(found) != ():
            raise ValueError(
                "distance must return one number for one simulation and the "
                f"observation, got {describe(found)}."
            )
        return jnp.asarray(found, jnp.result_type(float))

    return Distance(_no_scale, between)


def _no_scale(rows: PyTree, weight: Array) -> dict[str, Array]:
    return {}


def _flatten(s: PyTree) -> Array:
    if holds_trials(s):
        raise ValueError(
            "the distance compares vectors, but x holds Trials. Give "
            "distance=abc.wasserstein() or abc.mmd(), or a summary."
        )
    return flatten(s)


def _sample_of(s: PyTree) -> tuple[Array, Array]:
    """Rows `[T, d]` and which of them count."""
    rows = s.x if is_trials(s) else s
    leaves = jax.tree.leaves(rows)
    if not leaves or any(leaf.ndim < 1 for leaf in leaves):
        raise ValueError(
            "the distance compares samples: x must be Trials, or an array [T] or "
            f"[T, d], got {describe(s)}."
        )
    size = leaves[0].shape[0]
    mask = s.mask > 0 if isinstance(s, Trials) else jnp.ones(size, bool)
    return jnp.concatenate([leaf.reshape(size, -1) for leaf in leaves], axis=1), mask


def _squares(a: Array, b: Array) -> Array:
    """Squared distances `[n, m]` between rows."""
    return jnp.sum((a[:, None] - b) ** 2, axis=-1)


def _area(a: Array, mask_a: Array, b: Array, mask_b: Array) -> Array:
    """Area between the distribution functions of two samples `[n]`, `[m]`."""
    value = jnp.concatenate([a, b])
    step = jnp.concatenate([mask_a / jnp.sum(mask_a), -(mask_b / jnp.sum(mask_b))])
    mask = jnp.concatenate([mask_a, mask_b])
    # Hidden rows stand at the first value that counts, where they make no area.
    value = jnp.where(mask, value, jnp.min(jnp.where(mask, value, jnp.inf)))
    order = jnp.argsort(value)
    height = jnp.cumsum(step[order])[:-1]
    return jnp.sum(jnp.abs(height) * jnp.diff(value[order]))
