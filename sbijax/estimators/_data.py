"""What the estimators share about data: examples, vectors and ranges."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Prior, PyTree, Simulations
from sbijax.data import data_nodes, fill_zero_weight, flatten, is_trials, where_rows
from sbijax.networks.tokens import masked_mean

__all__ = [
    "count_invalid_theta",
    "features_of",
    "num_entries",
    "num_outside",
    "observed_range",
    "row_keys",
    "split_example",
    "unflatten",
]

_ODD = np.uint32(0x9E3779B1)


def split_example(sims: Simulations) -> tuple[Simulations, Simulations]:
    """One valid simulation of weight 1, and all with it in rows of weight 0."""
    row = jnp.argmax(sims.weight > 0)
    example = jax.tree.map(lambda leaf: leaf[row], sims)
    example = example._replace(weight=jnp.ones_like(example.weight))
    return example, fill_zero_weight(sims, example)


def count_invalid_theta(prior: Prior, sims: Simulations) -> Array:
    """How many simulations of some weight have no prior density."""
    none = jax.vmap(prior.log_prob)(sims.theta) == -jnp.inf
    return jnp.sum((sims.weight > 0) & none)


def row_keys(key: Array, rows: PyTree) -> Array:
    """A key for each row of the leaves, so that order and other rows have no effect."""

    def add_bits(leaf: Array) -> Array:
        numbers = leaf.reshape(len(leaf), -1).astype(jnp.float32)
        bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
        # The last bits of whole numbers are all zero.
        for shift in (15, 13):
            bits *= _ODD
            bits ^= bits >> shift
        places = jnp.arange(bits.shape[1], dtype=jnp.uint32)
        return jnp.sum(bits * (2 * places + 1), axis=1, dtype=jnp.uint32)

    keys = jnp.broadcast_to(key, len(jax.tree.leaves(rows)[0]))
    for leaf in jax.tree.leaves(rows):
        keys = jax.vmap(jax.random.fold_in)(keys, add_bits(leaf))
    return keys


def unflatten(vector: Array, like: PyTree) -> PyTree:
    """The leaves in the shapes of `like`: the inverse of `flatten`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(vector, ends[:-1]) if leaves else []
    shaped = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def features_of(x: PyTree) -> Array:
    """Inputs of a linear regression: all entries, of `Trials` their means."""

    def summarise(node: PyTree) -> PyTree:
        if not is_trials(node):
            return node
        return jax.tree.map(lambda leaf: masked_mean(leaf, node.mask > 0), node.x)

    return flatten(jax.tree.map(summarise, x, is_leaf=is_trials))


def observed_range(x: PyTree) -> list[tuple[Array, Array]]:
    """Smallest and largest value of every entry of x, widened by a tenth.

    The rows of `Trials` share theirs; what is missing or hidden does not count.
    """

    def widen(low: Array, high: Array) -> tuple[Array, Array]:
        margin = 0.1 * (high - low)
        return low - margin, high + margin

    def bounds(node: PyTree) -> list[tuple[Array, Array]]:
        if not is_trials(node):
            return [widen(jnp.nanmin(node, axis=0), jnp.nanmax(node, axis=0))]
        shown = jax.vmap(where_rows, (0, 0, None))
        return [
            widen(
                jnp.min(shown(node.mask, leaf, jnp.inf), axis=(0, 1)),
                jnp.max(shown(node.mask, leaf, -jnp.inf), axis=(0, 1)),
            )
            for leaf in jax.tree.leaves(node.x)
        ]

    return [pair for node in data_nodes(x) for pair in bounds(node)]


def num_outside(x: PyTree, bounds: list[tuple[Array, Array]]) -> Array:
    """How many entries of one x lie outside their range."""
    ranges, counts = iter(bounds), []
    for node in data_nodes(x):
        for leaf in jax.tree.leaves(node.x if is_trials(node) else node):
            low, high = next(ranges)
            outside = (leaf < low) | (leaf > high)
            if is_trials(node):
                outside = where_rows(node.mask, outside, False)
            counts.append(jnp.sum(outside))
    return jnp.sum(jnp.stack(counts))


def num_entries(x: PyTree) -> Array:
    """How many numbers one x holds."""

    def count(node: PyTree) -> Array | int:
        if not is_trials(node):
            return node.size
        return jnp.sum(node.mask > 0) * sum(a[0].size for a in jax.tree.leaves(node.x))

    return jnp.asarray(sum(map(count, data_nodes(x))))
