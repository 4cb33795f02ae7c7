"""Many observations, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from sbijax.base import Array, Params, PyTree

__all__ = ["in_turn"]


def in_turn(draw: Callable) -> Callable:
    """On a CPU, let `vmap` take one observation after the other.

    A CPU is busy with the particles of one, which stay in its caches, and each
    stops as soon as it is done instead of waiting for the slowest.
    """
    if jax.default_backend() != "cpu":
        return draw

    def one(params: Params, key: Array, x: PyTree) -> Any:
        impl = jax.random.key_impl(key)

        def from_bits(params: Params, bits: Array, x: PyTree) -> Any:
            return draw(params, jax.random.wrap_key_data(bits, impl=impl), x)

        # The key-reuse checker of JAX sees reuse in loops over keys within loops.
        shape = jax.eval_shape(jax.random.key_data, key).shape
        bits = jax.random.bits(key, shape, "uint32")
        closed, like = jax.make_jaxpr(from_bits, return_shape=True)(params, bits, x)

        # What `draw` holds, as a prior may hold traced values, comes as an argument.
        @jax.custom_batching.sequential_vmap
        def from_leaves(held: list, *leaves: Array) -> Any:
            out = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, held))(*leaves)
            return jax.tree.unflatten(jax.tree.structure(like), out)

        return from_leaves(closed.consts, *jax.tree.leaves((params, bits, x)))

    return one
