"""Categorical distributions of several whole numbers, one given those before it.

    q(y | c) = prod_d q(y_d | y_1, ..., y_{d-1}, c),

with the logits of all from one masked network, added to logits to start from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.densities.autoregressive import _Made
from sbijax.networks import resnet
from sbijax.networks._layers import to_network
from sbijax.networks.logistic import log_softmax, one_hot

__all__ = ["Categorical", "categorical"]


class Categorical(NamedTuple):
    """The number of values of every entry, and the functions of the distribution.

    `init(key, context)` gives a network that leaves the logits `start` `[D, K]` as
    they are; `log_prob(net, y, context, start)` is of one y `[D]` of possible values,
    and `sample(net, key, context, start)` draws one; `join(context, y)` is the context
    of what depends on y too.
    """

    sizes: Sequence[int]
    init: Callable[[Array, Array], PyTree]
    log_prob: Callable[[PyTree, Array, Array, Array], Array]
    sample: Callable[[PyTree, Array, Array, Array], Array]
    join: Callable[[Array, Array], Array]


def categorical(
    sizes: Sequence[int], *, hidden_size: int = 64, num_blocks: int = 1
) -> Categorical:
    """Make the distribution of entries with as many values as `sizes` say.

    Args:
        sizes: number of values of every entry.
        hidden_size: width of the masked residual network of several entries, D if that
            is more; a single one has the default `resnet`.
        num_blocks: its number of residual blocks.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.densities._categorical import categorical
        >>> choice, start, context = categorical([2]), jnp.zeros((1, 2)), jnp.zeros(3)
        >>> net = choice.init(jax.random.key(0), context)
        >>> round(float(choice.log_prob(net, jnp.ones(1), context, start)), 3)
        -0.693

    Reference:
        Germain, Gregor, Murray, Larochelle. MADE, 2015.
        Boelts, Lueckmann, Gao, Macke. Flexible and efficient simulation-based
        inference for models of decision-making, 2022.
    """
    num_dims, num_values = len(sizes), max(sizes)
    if num_dims == 1:
        network = resnet(num_values, zero_output=True)
    else:
        width = max(hidden_size, num_dims)
        made = _Made(num_dims, num_values, num_values, width, num_blocks, nn.silu)
        network = to_network(made)

    def inputs_of(y: Array, context: Array) -> tuple[Array, ...]:
        """A single entry has none before it."""
        return (one_hot(y, sizes).ravel(), context) if num_dims > 1 else (context,)

    def log_probs(net: PyTree, y: Array, context: Array, start: Array) -> Array:
        """Of all values of all entries `[D, K]`, each given the entries before it."""
        logits = start + network.apply(net, *inputs_of(y, context))
        return log_softmax(logits, sizes)

    def init_fn(key: Array, context: Array) -> PyTree:
        y = jnp.zeros(num_dims, context.dtype)
        return network.init(key, *inputs_of(y, context))

    def log_prob_fn(net: PyTree, y: Array, context: Array, start: Array) -> Array:
        chosen = one_hot(y, sizes) > 0
        return jnp.sum(jnp.where(chosen, log_probs(net, y, context, start), 0.0))

    def sample_fn(net: PyTree, key: Array, context: Array, start: Array) -> Array:
        def draw(carry: tuple[Array, Array], i: Array) -> tuple:
            y, key = carry
            key, value_key = jax.random.split(key)
            value = jax.random.categorical(
                value_key, log_probs(net, y, context, start)[i]
            )
            return (y.at[i].set(value.astype(y.dtype)), key), None

        y = jnp.zeros(num_dims, start.dtype)
        return jax.lax.scan(draw, (y, key), jnp.arange(num_dims))[0][0]

    def join(context: Array, y: Array) -> Array:
        return jnp.concatenate([context, one_hot(y, sizes).ravel()])

    return Categorical(sizes, init_fn, log_prob_fn, sample_fn, join)
