"""Recurrent embeddings of series of any length up to that of the simulations."""

import flax.linen as nn
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import check_sizes
from sbijax.networks.tokens import log_count, masked_mean, to_tokens

__all__ = ["gru"]


class _GRU(nn.Module):
    num_outputs: int
    hidden_size: int
    num_layers: int

    @nn.compact
    def __call__(self, x: PyTree) -> Array:
        values, mask = to_tokens(x)
        length = jnp.sum(mask)
        h = values
        for _ in range(self.num_layers):
            h = jnp.asarray(nn.RNN(nn.GRUCell(self.hidden_size))(h))
        last = h[jnp.maximum(length - 1, 0)]
        parts = [last, masked_mean(h, mask), log_count(mask, h.dtype)]
        return nn.Dense(self.num_outputs)(jnp.concatenate(parts))


def gru(num_outputs: int, *, hidden_size: int = 64, num_layers: int = 1) -> Network:
    """Embed a series by gated recurrent units: the last state and their mean.

    Args:
        num_outputs: length of the output vector.
        hidden_size: width of the state.
        num_layers: layers of recurrence.

    Returns:
        A network of x with leaves `[T, ...]`, or of `Trials`, whose mask hides
        padding at the end.

    Raises:
        ValueError: a size is below 1; (when called) leaves of unequal lengths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import gru
        >>> net = gru(8)
        >>> series = jnp.linspace(0.0, 1.0, 20)
        >>> params = net.init(jax.random.key(0), series)
        >>> net.apply(params, series).shape
        (8,)

    Reference:
        Cho et al. Learning phrase representations using RNN encoder-decoder for
        statistical machine translation, 2014.
    """
    check_sizes(num_outputs, hidden_size, num_layers)
    module = _GRU(num_outputs, hidden_size, num_layers)
    return Network(init=module.init, apply=module.apply)
