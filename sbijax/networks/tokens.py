"""Rows of data as tokens `[T, C]` with a mask: what sets and series share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.checks import describe
from sbijax.data import is_trials, where_rows

__all__ = ["Tokens", "log_count", "masked_mean", "to_tokens"]


class Tokens(NamedTuple):
    """`values` `[T, C]`, and `mask` `[T]` that is True for rows that count."""

    values: Array
    mask: Array


def to_tokens(x: PyTree) -> Tokens:
    """Read a pytree of leaves `[T, ...]`, or `Trials` of them; hidden rows are 0.

    Raises:
        ValueError: leaves without rows, or of different lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks.tokens import to_tokens
        >>> to_tokens({"a": jnp.zeros(3), "b": jnp.zeros((3, 2, 2))}).values.shape
        (3, 5)
    """
    rows, mask = (x.x, x.mask) if is_trials(x) else (x, None)
    leaves = jax.tree.leaves(rows)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            "a network of rows needs one x with leaves [T, ...] of one length T, got "
            f"{describe(rows)}."
        )
    length = leaves[0].shape[0]
    values = jnp.concatenate([leaf.reshape(length, -1) for leaf in leaves], axis=1)
    shown = jnp.ones(length, bool) if mask is None else mask > 0
    return Tokens(where_rows(shown, values, 0.0), shown)


def masked_mean(rows: Array, mask: Array) -> Array:
    """Mean over the rows `[T, ...]` that count, 0 if there are none."""
    total = jnp.sum(where_rows(mask, rows, 0.0), axis=0)
    return total / jnp.maximum(jnp.sum(mask), 1)


def log_count(mask: Array, dtype: jnp.dtype) -> Array:
    """log(1 + number of rows) `[1]`: how much the data can tell."""
    return jnp.log1p(jnp.sum(mask).astype(dtype))[None]
