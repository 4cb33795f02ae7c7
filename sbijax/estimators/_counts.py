"""Whole numbers made continuous, for densities.

A density of whole numbers has no bound: it grows for as long as it narrows down on
them, and says nothing.  Noise spreads each over a cell, v = x + u with u uniform in
[0, 1), where

    E_u log q(x + u) <= log int_0^1 q(x + u) du,

the log-probability of x.  Counts, which are not negative, are mapped to the line by

    y = log(exp(sqrt(v)) - 1),

a square root of many, which makes their noise alike, and half a logarithm of few, so
that there is no edge at 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array
from sbijax.noise import uniform

__all__ = [
    "Counts",
    "cell_centres",
    "find_counts",
    "from_reals",
    "is_count",
    "jitter",
    "to_reals",
]

_LEAST = 1e-4  # in a cell of width 1, where the map has no end


class Counts(NamedTuple):
    """Which entries of a leaf are whole numbers, and which of them have no sign."""

    whole: Array
    positive: Array


def find_counts(leaves: list[Array], weight: Array) -> list[Counts]:
    """Tell the entries that are whole in all rows of some weight.

    Where most floats are too large for a fraction, or no row has weight, none are.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.estimators._counts import find_counts
        >>> x = jnp.array([[3.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
        >>> counts = find_counts([x], jnp.ones(2))[0]
        >>> counts.whole.tolist(), counts.positive.tolist()
        ([True, True, False], [True, False, False])
    """

    def find(leaf: Array) -> Counts:
        seen = (weight > 0).reshape((-1,) + (1,) * (leaf.ndim - 1))
        limit = 0.25 / jnp.finfo(leaf.dtype).eps
        small = jnp.sum(seen & (jnp.abs(leaf) < limit), axis=0) > 0.5 * jnp.sum(seen)
        fits = (leaf == jnp.round(leaf)) & jnp.isfinite(leaf)
        whole = small & jnp.all(fits | ~seen, axis=0)
        return Counts(whole, whole & jnp.all((leaf >= 0) | ~seen, axis=0))

    return [find(leaf) for leaf in leaves]


def jitter(counts: list[Counts], key: Array, leaves: list[Array]) -> list[Array]:
    """Move the whole numbers of one x to random places in their cells."""
    keys = jax.random.split(key, len(leaves))
    return [
        jnp.where(
            count.whole, jnp.floor(leaf) + uniform(one, leaf.shape, leaf.dtype), leaf
        )
        for count, one, leaf in zip(counts, keys, leaves, strict=True)
    ]


def cell_centres(counts: list[Counts], leaves: list[Array]) -> list[Array]:
    """Move the whole numbers of one x to the middles of their cells."""
    return [
        jnp.where(count.whole, jnp.floor(leaf) + 0.5, leaf)
        for count, leaf in zip(counts, leaves, strict=True)
    ]


def is_count(counts: list[Counts], leaves: list[Array]) -> Array:
    """Whether no count of one x is negative."""
    possible = jnp.array(True)
    for count, leaf in zip(counts, leaves, strict=True):
        possible &= jnp.all(~count.positive | (leaf >= 0))
    return possible


def to_reals(counts: list[Counts], leaves: list[Array]) -> tuple[list[Array], Array]:
    """Counts on the whole line, and the log of the slopes.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.estimators._counts import Counts, to_reals
        >>> counts = [Counts(jnp.array(True), jnp.array(True))]
        >>> reals, log_det = to_reals(counts, [jnp.array(400.5)])
        >>> round(float(reals[0]), 3), round(float(log_det), 3)
        (20.012, -3.69)
    """
    reals, log_det = [], jnp.zeros(())
    for count, leaf in zip(counts, leaves, strict=True):
        size = jnp.where(count.positive, jnp.maximum(leaf, _LEAST), 1.0)
        root = jnp.sqrt(size)
        share = -jnp.expm1(-root)
        reals.append(jnp.where(count.positive, root + jnp.log(share), leaf))
        slope = jnp.log(2.0 * root * share)
        log_det -= jnp.sum(jnp.where(count.positive, slope, 0.0))
    return reals, log_det


def from_reals(counts: list[Counts], reals: list[Array]) -> list[Array]:
    """The numbers whose cells these places lie in."""

    def find(count: Counts, real: Array) -> Array:
        value = jnp.where(count.positive, jax.nn.softplus(real) ** 2, real)
        return jnp.where(count.whole, jnp.floor(value), value)

    return [find(count, real) for count, real in zip(counts, reals, strict=True)]
