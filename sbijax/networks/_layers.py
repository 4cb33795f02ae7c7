"""Layers and checks that the networks share."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree

__all__ = ["Activation", "_Join", "check_sizes", "output_layer"]

Activation = Callable[[Array], Array]


class _Join(nn.Module):
    """Sum of linear maps of the flattened leaves of the inputs."""

    features: int

    @nn.compact
    def __call__(self, *inputs: PyTree) -> Array:
        h = self.param("bias", nn.initializers.zeros, (self.features,))
        for i, leaf in enumerate(jax.tree.leaves(inputs)):
            flat = jnp.ravel(leaf)
            if flat.size:
                h = h + nn.Dense(self.features, use_bias=False, name=f"input_{i}")(flat)
        return h


def output_layer(features: int, zero: bool) -> nn.Dense:
    """The last layer, which may start at zero."""
    if zero:
        return nn.Dense(features, kernel_init=nn.initializers.zeros)
    return nn.Dense(features)


def check_sizes(*sizes: int) -> None:
    """Raise a `ValueError` unless all are whole numbers from 1."""
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"network sizes must be whole numbers >= 1, got {sizes}.")
