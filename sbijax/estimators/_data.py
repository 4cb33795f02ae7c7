"""What the estimators share about data: examples, vectors and ranges."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Prior, PyTree, Simulations, fill_zero_weight

__all__ = [
    "count_invalid_theta",
    "flatten",
    "num_entries",
    "num_outside",
    "observed_range",
    "split_example",
    "unflatten",
]


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


def flatten(x: PyTree) -> Array:
    """All leaves of one x in one vector."""
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def unflatten(vector: Array, like: PyTree) -> PyTree:
    """The leaves in the shapes of `like`: the inverse of `flatten`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(vector, ends[:-1]) if leaves else []
    shaped = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def observed_range(x: PyTree) -> list[tuple[Array, Array]]:
    """Smallest and largest value of every entry of x, widened by a tenth."""

    def widen(leaf: Array) -> tuple[Array, Array]:
        low, high = jnp.min(leaf, axis=0), jnp.max(leaf, axis=0)
        margin = 0.1 * (high - low)
        return low - margin, high + margin

    return [widen(leaf) for leaf in jax.tree.leaves(x)]


def num_outside(x: PyTree, bounds: list[tuple[Array, Array]]) -> Array:
    """How many entries of one x lie outside their range."""
    pairs = zip(jax.tree.leaves(x), bounds, strict=True)
    counts = [jnp.sum((leaf < low) | (leaf > high)) for leaf, (low, high) in pairs]
    return jnp.sum(jnp.stack(counts))


def num_entries(x: PyTree) -> Array:
    """How many numbers one x holds."""
    return jnp.asarray(sum(leaf.size for leaf in jax.tree.leaves(x)))
