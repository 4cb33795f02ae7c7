"""Parameters as one vector.

An optimizer step on a pytree is several small programs for each leaf; on one vector
it is a few in all, which compile in less time and run faster.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.checks import describe

__all__ = ["Flat", "flatten"]


@partial(jax.tree_util.register_dataclass, data_fields=["vector"], meta_fields=["like"])
@dataclass(frozen=True)
class Flat:
    """A pytree of arrays in one `vector` [P], and what it looks like.

    The vector has single precision at least, and `tree` the types of the leaves.
    """

    vector: Array
    like: tuple[tuple[jax.ShapeDtypeStruct, ...], Any]  # the leaves, the structure

    def tree(self) -> PyTree:
        """The pytree again."""
        leaves, structure = self.like
        start, parts = 0, []
        for leaf in leaves:
            stop = start + math.prod(leaf.shape)
            part = jax.lax.slice_in_dim(self.vector, start, stop)
            parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
            start = stop
        return jax.tree.unflatten(structure, parts)


def flatten(tree: PyTree) -> Flat:
    """Join the leaves of a pytree of floating-point arrays.

    Raises:
        TypeError: a leaf has no floating-point numbers, which no gradient can train.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.training.flat import flatten
        >>> flat = flatten({"bias": jnp.zeros(2), "kernel": jnp.ones((2, 3))})
        >>> flat.vector.shape, flat.tree()["kernel"].shape
        ((8,), (2, 3))
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                "parameters must be floating-point arrays to be trained, got a leaf "
                f"{describe(leaf)}; what is not trained belongs into the statistics."
            )
    # Steps of an average are lost in the rounding of half precision.
    dtype = jnp.result_type(jnp.float32, *leaves)
    vector = jnp.concatenate(
        [jnp.zeros(0, dtype), *(leaf.astype(dtype).ravel() for leaf in leaves)]
    )
    like = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return Flat(vector, (like, structure))
