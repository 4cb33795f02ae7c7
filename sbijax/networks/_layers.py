"""Layers and checks that the networks share.

A module made of these says how widely its weights are spread, and `to_network` draws
all of them in one call: one for each kernel takes a tenth of a second each to compile.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree

__all__ = ["Activation", "_Join", "check_sizes", "dense", "draw_kernels"]
__all__ += ["output_layer", "spread", "to_network"]

Activation = Callable[[Array], Array]

_TRUNCATION = 2.0  # standard deviations of the normal before
_TRUNCATED_SD = 0.87962566103423978


def spread(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """The standard deviation of every entry of a kernel, 1 / inputs^.5.

    Reference:
        LeCun, Bottou, Orr, Mueller. Efficient backprop, 1998.
    """
    return jnp.full(shape, max(1, math.prod(shape[:-1])) ** -0.5, dtype)


dense = partial(nn.Dense, kernel_init=spread)


def draw_kernels(init: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Turn an `init` that gives the spread of kernels into one that draws them.

    Every leaf of more than one axis is multiplied with truncated normal numbers.
    """

    def init_fn(key: Array, *inputs: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(init(jax.random.key(0), *inputs))
        sizes = [leaf.size if leaf.ndim > 1 else 0 for leaf in leaves]
        limit, start = _TRUNCATION, 0
        noise = jax.random.truncated_normal(key, -limit, limit, (sum(sizes),))
        for i, (leaf, size) in enumerate(zip(leaves, sizes, strict=True)):
            if size:
                part = jax.lax.slice_in_dim(noise, start, start + size)
                part = part.reshape(leaf.shape) / _TRUNCATED_SD
                leaves[i] = leaf * part.astype(leaf.dtype)
                start += size
        return jax.tree.unflatten(structure, leaves)

    return init_fn


def to_network(module: nn.Module) -> Network:
    """The functions of a module made of these layers."""
    return Network(init=draw_kernels(module.init), apply=module.apply)


class _Join(nn.Module):
    """Sum of linear maps of the flattened leaves of the inputs."""

    features: int

    @nn.compact
    def __call__(self, *inputs: PyTree) -> Array:
        h = self.param("bias", nn.initializers.zeros, (self.features,))
        for i, leaf in enumerate(jax.tree.leaves(inputs)):
            flat = jnp.ravel(leaf)
            if flat.size:
                h = h + dense(self.features, use_bias=False, name=f"input_{i}")(flat)
        return h


def output_layer(features: int, zero: bool) -> nn.Dense:
    """The last layer, which may start at zero."""
    if zero:
        return nn.Dense(features, kernel_init=nn.initializers.zeros)
    return dense(features)


def check_sizes(*sizes: int) -> None:
    """Raise a `ValueError` unless all are whole numbers from 1."""
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"network sizes must be whole numbers >= 1, got {sizes}.")
