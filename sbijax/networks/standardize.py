"""Standardizers: elementwise bijections fitted to the simulations.

A plain z-score is ruined by heavy tails and counts: one row of 1e6 squeezes
all others into a point.  The robust standardizer measures location and scale
by quantiles and squashes the tails,

    s = asinh((v - median) / (4 iqr')),   y = (s - mean(s)) / sd(s),

where iqr' is the interquartile range over 1.349, the standard deviation of a
normal with that range.  Within three such deviations the map is close to
linear, beyond it grows like a logarithm.

Positive quantities such as populations and rates are told apart by their ratios, which
such a map loses where they are small.  Instead

    s = asinh(v / min),

a logarithm of all that was seen (but for what is 1e19 times smaller than the upper
quartile, in float32), is taken where it makes the element more normal: where the mean
log-density of v under a normal y,

    E log |dy / dv| + const,

is larger by .1 nats or more (Box and Cox. An analysis of transformations, 1964), as it
is for a log-normal of log-scale .5 or an exponential distribution.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree, Standardizer, Trials
from sbijax.checks import check_count, check_record, describe
from sbijax.data import data_nodes, holds_trials, is_trials, where_rows

__all__ = ["missing", "no_standardizer", "pooled", "robust", "zscore"]

_NORMAL_IQR = 1.349
_LINEAR_RANGE = 4.0
_LEAST_GAIN = 0.1


def zscore() -> Standardizer:
    """Subtract the weighted mean and divide by the weighted standard deviation.

    An element without spread keeps scale 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import zscore
        >>> stats = zscore().fit(jnp.array([1.0, 3.0]), jnp.ones(2))
        >>> float(zscore().forward(stats, 3.0))
        1.0
    """

    def fit_leaf(values: Array, weight: Array) -> dict[str, Array]:
        loc, scale = _mean_and_sd(values, weight)
        return {"loc": loc, "scale": scale}

    return _leafwise(
        fit_leaf,
        forward=lambda s, v: (v - s["loc"]) / s["scale"],
        inverse=lambda s, y: s["loc"] + s["scale"] * y,
        log_slope=lambda s, v: jnp.broadcast_to(-jnp.log(s["scale"]), jnp.shape(v)),
    )


def robust() -> Standardizer:
    """Squash by asinh around the median, then subtract the mean, divide by the sd.

    Positive elements whose logarithm is clearly closer to a normal, like those that
    spread over decades, are squashed around 0 instead, from their smallest value on, so
    that y follows their logarithm.

    Elements whose middle half is constant (rare counts, say) take for a scale
    the median distance from it among the rows that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import robust
        >>> values = jnp.array([0.0, 1.0, 2.0, 3.0, 1e6])
        >>> stats = robust().fit(values, jnp.ones(5))
        >>> bool(abs(robust().forward(stats, 1e6)) < 3)
        True
        >>> stats = robust().fit(jnp.logspace(-9.0, 9.0, 19), jnp.ones(19))
        >>> y = [robust().forward(stats, v) for v in (1e-8, 1e-7, 1e7, 1e8)]
        >>> bool(abs((y[1] - y[0]) - (y[3] - y[2])) < 0.01)
        True

    Reference:
        Box, Cox. An analysis of transformations, 1964.
    """

    def place(s: dict[str, Array], v: Array) -> Array:
        """Spreads from the centre, finite for any finite v."""
        u = (v - s["centre"]) / s["spread"]
        largest = jnp.finfo(u.dtype).max
        return jnp.where(jnp.isinf(v), v, jnp.clip(u, -largest, largest))

    def squash(s: dict[str, Array], v: Array) -> Array:
        return jnp.arcsinh(place(s, v))

    def fit_leaf(values: Array, weight: Array) -> dict[str, Array]:
        low, median, high = _quantiles(values, weight, (0.25, 0.5, 0.75))
        spread = (high - low) / _NORMAL_IQR
        tiny = 1e-6 * jnp.maximum(jnp.abs(median), jnp.finfo(values.dtype).tiny)
        varies = spread > tiny
        spread = jnp.where(varies, spread, _median_step(values, median, weight))
        around = standardize(median, _LINEAR_RANGE * spread, values, weight)
        least = _least(values, weight)
        unit = jnp.maximum(least, float(jnp.finfo(values.dtype).tiny) ** 0.5 * high)
        unit = jnp.where(least > 0, unit, 1.0)
        by_size = standardize(jnp.zeros_like(unit), unit, values, weight)
        gain = normality(by_size, values, weight) - normality(around, values, weight)
        use_size = varies & (least > 0) & (gain > _LEAST_GAIN)
        return jax.tree.map(partial(jnp.where, use_size), by_size, around)

    def standardize(
        centre: Array, spread: Array, values: Array, weight: Array
    ) -> dict[str, Array]:
        stats = {"centre": centre, "spread": spread}
        loc, scale = _mean_and_sd(squash(stats, values), weight)
        return stats | {"loc": loc, "scale": scale}

    def normality(s: dict[str, Array], values: Array, weight: Array) -> Array:
        """Mean log-density of v where y is normal, up to a constant."""
        return _mean_and_sd(log_slope(s, values), weight)[0]

    def inverse(s: dict[str, Array], y: Array) -> Array:
        return s["centre"] + s["spread"] * jnp.sinh(s["loc"] + s["scale"] * y)

    def log_slope(s: dict[str, Array], v: Array) -> Array:
        slope = jnp.log(jnp.hypot(1.0, place(s, v)))
        return -slope - jnp.log(s["spread"]) - jnp.log(s["scale"])

    return _leafwise(
        fit_leaf,
        forward=lambda s, v: (squash(s, v) - s["loc"]) / s["scale"],
        inverse=inverse,
        log_slope=log_slope,
    )


def no_standardizer() -> Standardizer:
    """Leave the data as they are, for inputs that are already of order one.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import no_standardizer
        >>> float(no_standardizer().forward({}, jnp.array(3.0)))
        3.0
    """
    return Standardizer(
        fit=lambda values, weight: {},
        forward=lambda stats, value: value,
        inverse=lambda stats, value: value,
        log_det=lambda stats, value: jnp.zeros(()),
    )


def pooled(standardizer: Standardizer, *, num_axes: int = 1) -> Standardizer:
    """Share statistics over the first axes of x: one scale for all pixels, say.

    A convolution expects all places of an image or a series to be alike.

    Args:
        standardizer: what to fit, such as `robust()`.
        num_axes: 1 for a series `[T]` or `[T, C]`, 2 for an image `[H, W]` or
            `[H, W, C]`.

    Raises:
        TypeError: `standardizer` is none.
        ValueError: fewer than one axis; (when called) x has fewer axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import pooled, zscore
        >>> image = pooled(zscore(), num_axes=2)
        >>> stats = image.fit(jnp.zeros((5, 8, 8)).at[:, :4].set(2.0), jnp.ones(5))
        >>> float(image.forward(stats, jnp.zeros((8, 8)))[0, 0])
        -1.0
    """
    check_record(standardizer, Standardizer, "standardizer", "Make one with robust().")
    num_axes = check_count(num_axes, "num_axes")

    def to_rows(leaf: Array) -> Array:
        if leaf.ndim < num_axes:
            raise ValueError(
                f"pooling over {num_axes} axes needs x with as many, got "
                f"{describe(leaf)}."
            )
        return leaf.reshape(-1, *leaf.shape[num_axes:])

    def fit(values: PyTree, weight: Array) -> list[PyTree]:
        def fit_leaf(leaf: Array) -> PyTree:
            rows = jax.vmap(to_rows)(leaf)
            size = rows.shape[1]
            flat = rows.reshape(-1, *rows.shape[2:])
            if weight.ndim > 1:  # one for each entry
                return standardizer.fit(flat, weight.reshape(flat.shape))
            return standardizer.fit(flat, jnp.repeat(weight, size))

        return [fit_leaf(leaf) for leaf in _plain_leaves(values, "pooled")]

    def each(function: Callable) -> Callable:
        def apply_leaf(stats: PyTree, leaf: Array) -> Array:
            mapped = jax.vmap(partial(function, stats))(to_rows(leaf))
            return mapped.reshape(leaf.shape)

        return lambda stats, value: _apply(apply_leaf, stats, value)

    def log_det(stats: list[PyTree], value: PyTree) -> Array:
        pairs = zip(stats, jax.tree.leaves(value), strict=True)
        sums = [
            jnp.sum(jax.vmap(partial(standardizer.log_det, s))(to_rows(leaf)))
            for s, leaf in pairs
        ]
        return sum(sums, jnp.zeros(()))

    return Standardizer(
        fit=fit,
        forward=each(standardizer.forward),
        inverse=each(standardizer.inverse),
        log_det=log_det,
    )


def missing(standardizer: Standardizer) -> Standardizer:
    """Mark entries that are NaN: every number becomes two, (value, is there).

    What is missing is left out of the fit and gets the value 0, the middle of the
    others.  The pair is a last axis: a series `[T]` becomes `[T, 2]`, an image
    `[H, W]` becomes `[H, W, 2]`, which networks read as channels.

    Args:
        standardizer: what to fit, such as `robust()` or `pooled(robust())`.

    Raises:
        TypeError: `standardizer` is none.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import missing, zscore
        >>> marked = missing(zscore())
        >>> stats = marked.fit(jnp.array([[1.0], [jnp.nan], [3.0]]), jnp.ones(3))
        >>> marked.forward(stats, jnp.array([jnp.nan])).tolist()
        [[0.0, 0.0]]
    """
    check_record(standardizer, Standardizer, "standardizer", "Make one with robust().")

    def fit(values: PyTree, weight: Array) -> list[PyTree]:
        def fit_leaf(leaf: Array) -> PyTree:
            there = jnp.isfinite(leaf)
            seen = there * weight.reshape((-1,) + (1,) * (leaf.ndim - 1))
            return standardizer.fit(jnp.where(there, leaf, 0.0), seen)

        return [fit_leaf(leaf) for leaf in _plain_leaves(values, "missing")]

    def forward_leaf(stats: PyTree, leaf: Array) -> Array:
        there = jnp.isfinite(leaf)
        value = standardizer.forward(stats, jnp.where(there, leaf, 0.0))
        return jnp.stack([jnp.where(there, value, 0.0), there.astype(value.dtype)], -1)

    def inverse_leaf(stats: PyTree, pair: Array) -> Array:
        value = standardizer.inverse(stats, pair[..., 0])
        return jnp.where(pair[..., 1] > 0, value, jnp.nan)

    def log_det(stats: list[PyTree], value: PyTree) -> Array:
        raise TypeError("x with missing entries has no density; NLE cannot use it.")

    return Standardizer(
        fit=fit,
        forward=partial(_apply, forward_leaf),
        inverse=partial(_apply, inverse_leaf),
        log_det=log_det,
    )


def _leafwise(
    fit_leaf: Callable[[Array, Array], dict[str, Array]],
    forward: Callable[[dict[str, Array], Array], Array],
    inverse: Callable[[dict[str, Array], Array], Array],
    log_slope: Callable[[dict[str, Array], Array], Array],
) -> Standardizer:
    """Lift the functions of one array to pytrees; stats are lists over leaves.

    The rows of `Trials` share their statistics, and those that the mask hides have
    no effect and become 0.
    """

    def fit(values: PyTree, weight: Array) -> list:
        return [_fit_node(fit_leaf, node, weight) for node in data_nodes(values)]

    def log_det(stats: list, value: PyTree) -> Array:
        slopes = _apply(log_slope, stats, value)
        shown = [s.x if is_trials(s) else s for s in data_nodes(slopes)]
        return sum((jnp.sum(slope) for slope in jax.tree.leaves(shown)), jnp.zeros(()))

    return Standardizer(
        fit=fit,
        forward=partial(_apply, forward),
        inverse=partial(_apply, inverse),
        log_det=log_det,
    )


def _plain_leaves(values: PyTree, name: str) -> list:
    """The leaves of values without `Trials`."""
    if holds_trials(values):
        raise ValueError(
            f"{name} cannot read Trials. Their rows share statistics under robust() "
            "and zscore() already, and their mask hides rows that are missing."
        )
    return jax.tree.leaves(values)


def _fit_node(fit_leaf: Callable, node: PyTree, weight: Array) -> PyTree:
    if not is_trials(node):
        return fit_leaf(node, weight)
    # One row per simulation and trial.
    seen = jnp.ravel(weight[:, None] * (node.mask > 0))
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), node.x)
    return [fit_leaf(leaf, seen) for leaf in jax.tree.leaves(flat)]


def _apply(function: Callable, stats: list, tree: PyTree) -> PyTree:
    """A function of the statistics and one array, on every leaf of one example."""

    def apply_node(s: PyTree, node: PyTree) -> PyTree:
        if not is_trials(node):
            return function(s, node)
        leaves, structure = jax.tree.flatten(node.x)
        mapped = [
            where_rows(node.mask, jax.vmap(partial(function, one))(leaf), 0.0)
            for one, leaf in zip(s, leaves, strict=True)
        ]
        return Trials(jax.tree.unflatten(structure, mapped), node.mask)

    nodes, structure = jax.tree.flatten(tree, is_leaf=is_trials)
    return jax.tree.unflatten(
        structure, [apply_node(s, node) for s, node in zip(stats, nodes, strict=True)]
    )


def _rows(weight: Array, values: Array) -> tuple[Array, Array]:
    """Weights broadcastable to `values`, and values with rows of weight 0 cleared."""
    if weight.shape == values.shape:
        return weight, jnp.where(weight > 0, values, 0.0)
    weight = weight.reshape((-1,) + (1,) * (values.ndim - 1)).astype(values.dtype)
    return weight, jnp.where(weight > 0, values, 0.0)


def _mean_and_sd(values: Array, weight: Array) -> tuple[Array, Array]:
    w, v = _rows(weight, values)
    total = jnp.maximum(jnp.sum(w, axis=0), jnp.finfo(values.dtype).tiny)
    mean = jnp.sum(w * v, axis=0) / total
    # Squares of the deviations from 1e19 on would overflow.
    largest = jnp.max(jnp.where(w > 0, jnp.abs(v - mean), 0.0), axis=0)
    unit = jnp.where(largest > 0, largest, 1.0)
    sd = unit * jnp.sqrt(jnp.sum(w * ((v - mean) / unit) ** 2, axis=0) / total)
    floor = 1e-6 * jnp.abs(mean)
    return mean, jnp.where(sd > floor, sd, 1.0)


def _least(values: Array, weight: Array) -> Array:
    """The smallest value of some weight, infinite without any."""
    w, v = _rows(weight, values)
    return jnp.min(jnp.where(w > 0, v, jnp.inf), axis=0)


def _median_step(values: Array, median: Array, weight: Array) -> Array:
    """Weighted median of |v - median| over the rows where it is not 0, else 1."""
    w, v = _rows(weight, values)
    distance = jnp.abs(v - median)
    moved = jnp.where((w > 0) & (distance > 0), w, 0.0)
    step = _quantiles(distance, moved, (0.5,))[0]
    return jnp.where(step > 0, step, 1.0)


def _quantiles(values: Array, weight: Array, levels: tuple[float, ...]) -> Array:
    """Weighted quantiles along axis 0, `[len(levels), ...]`, values of the data.

    The smallest value with at least this share of the weight up to it, found by
    bisection over the bits of floating-point numbers, whose order is that of
    integers: exact, and much faster than sorting many rows.
    """
    w, v = _rows(weight, values)
    w = jnp.broadcast_to(w, v.shape)
    info = jnp.finfo(v.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    magnitude = jnp.array(jnp.iinfo(integer).max, integer)

    def flip(bits: Array) -> Array:
        """Negative numbers count backwards; its own inverse."""
        return jnp.where(bits < 0, bits ^ magnitude, bits)

    # A negative zero is a zero.
    place = flip(jax.lax.bitcast_convert_type(v + 0.0, integer))
    total = jnp.sum(w, axis=0)

    def pick(level: Array) -> Array:
        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            below, above = bracket
            middle = (below & above) + ((below ^ above) >> 1)
            share = jnp.sum(jnp.where(place <= middle, w, 0.0), axis=0)
            enough = share >= level * total
            return jnp.where(enough, below, middle), jnp.where(enough, middle, above)

        ends = (jnp.full_like(place[0], ~magnitude), jnp.full_like(place[0], magnitude))
        _, found = jax.lax.fori_loop(0, info.bits, halve, ends)
        quantile = jax.lax.bitcast_convert_type(flip(found), v.dtype)
        return jnp.where(total > 0, quantile, 0.0)

    return jax.vmap(pick)(jnp.array(levels, v.dtype))
