"""Adapters that turn other things into `Network` records."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sbijax.base import Array, Network, PyTree
from sbijax.checks import check_network

__all__ = ["flatten", "from_nnx", "pretrained"]


def flatten() -> Network:
    """All leaves of all inputs, raveled and joined to one vector; no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.networks import flatten
        >>> flatten().apply({}, {"a": jnp.zeros(()), "b": jnp.zeros((2, 2))}).shape
        (5,)
    """

    def apply(params: PyTree, *inputs: PyTree) -> Array:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(inputs)])

    return Network(init=lambda key, *inputs: {}, apply=apply)


def pretrained(network: Any, params: PyTree, *, frozen: bool = False) -> Network:
    """A network that starts from parameters that are there already.

    Args:
        network: any `Network`, or a flax.linen module.
        params: its parameters.
        frozen: keep them as they are; by default they are trained further.

    Raises:
        TypeError: `network` is none.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from sbijax.networks import pretrained
        >>> module = nn.Dense(3)
        >>> params = module.init(jax.random.key(0), jnp.zeros(2))
        >>> net = pretrained(module, params, frozen=True)
        >>> net.apply(net.init(jax.random.key(1), jnp.zeros(2)), jnp.ones(2)).shape
        (3,)
    """
    check_network(network, "network")
    held = jax.tree.map(jnp.asarray, params)

    def apply(trained: PyTree, *inputs: PyTree) -> Any:
        return network.apply(held if frozen else trained, *inputs)

    return Network(init=lambda key, *inputs: {} if frozen else held, apply=apply)


def from_nnx(make_module: Callable[[nnx.Rngs], Any]) -> Network:
    """A network from a function that builds a stateless flax NNX module.

    Args:
        make_module: `rngs -> module`; the module is called on inputs of one
            example.

    Returns:
        The network; its parameters are a plain nested dict.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from sbijax.networks import from_nnx
        >>> net = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
        >>> params = net.init(jax.random.key(0), jnp.zeros(2))
        >>> net.apply(params, jnp.zeros(2)).shape
        (3,)
    """

    def init(key: Array, *inputs: Any) -> PyTree:
        return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, *inputs: Any) -> Any:
        module = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
        state = nnx.state(module, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(module, state)
        return module(*inputs)

    return Network(init=init, apply=apply)
