"""Embeddings of several inputs at once, each by a network of its own."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.checks import check_network, describe

__all__ = ["fuse"]


def fuse(networks: Mapping[str, Network]) -> Network:
    """Join the outputs of one network for each entry of a dict x.

    Args:
        networks: a network for every key of x, with vectors as outputs.

    Returns:
        A network of a dict; its output holds theirs in the order of the sorted
        keys.

    Raises:
        TypeError: an entry is not a network.
        ValueError: no networks; (when called) x has other keys.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import fuse, gru, mlp
        >>> net = fuse({"series": gru(6), "site": mlp(2)})
        >>> x = {"series": jnp.zeros(30), "site": jnp.zeros(3)}
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8,)
    """
    if not networks:
        raise ValueError("fuse needs at least one network, got none.")
    for name, network in networks.items():
        check_network(network, f"networks[{name!r}]")
    names = sorted(networks)

    def check(x: PyTree) -> None:
        if not isinstance(x, Mapping) or set(x) != set(names):
            raise ValueError(
                f"x must be a dict with the keys {names} of the networks, got "
                f"{describe(x)}."
            )

    def init(key: Array, x: PyTree) -> PyTree:
        check(x)
        keys = jax.random.split(key, len(names))
        return {
            name: networks[name].init(k, x[name])
            for name, k in zip(names, keys, strict=True)
        }

    def apply(params: PyTree, x: PyTree) -> Array:
        check(x)
        parts = [networks[name].apply(params[name], x[name]) for name in names]
        return jnp.concatenate(parts)

    return Network(init=init, apply=apply)
