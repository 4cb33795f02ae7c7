"""Transformers: attention over rows, pooled to one vector by a learned query."""

import math

import flax.linen as nn
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import check_sizes, dense, spread, to_network
from sbijax.networks.tokens import log_count, to_tokens

__all__ = ["Block", "check_heads", "transformer"]


class Block(nn.Module):
    """Attention of tokens to tokens, then a perceptron; both on normalised input."""

    hidden_size: int
    num_heads: int

    @nn.compact
    def __call__(self, h: Array, mask: Array) -> Array:
        """Tokens `[T, H]` and which of them `[T]` may be looked at."""
        attend = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=spread)
        h = h + attend(nn.LayerNorm()(h), mask=mask[None, None, :])
        r = dense(2 * self.hidden_size)(nn.LayerNorm()(h))
        return h + dense(self.hidden_size)(nn.gelu(r))


class _Transformer(nn.Module):
    num_outputs: int
    hidden_size: int
    num_heads: int
    num_layers: int
    positional: bool

    @nn.compact
    def __call__(self, x: PyTree) -> Array:
        values, mask = to_tokens(x)
        h = dense(self.hidden_size)(values)
        if self.positional:
            h = h + positions(len(values), self.hidden_size).astype(h.dtype)
        for _ in range(self.num_layers):
            h = Block(self.hidden_size, self.num_heads)(h, mask)
        query = self.param(
            "query", nn.initializers.constant(0.01), (1, self.hidden_size)
        )
        pool = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=spread)
        pooled = pool(query, nn.LayerNorm()(h), mask=mask[None, None, :])[0]
        return dense(self.num_outputs)(
            jnp.concatenate([pooled, log_count(mask, h.dtype)])
        )


def positions(length: int, size: int) -> Array:
    """Sines and cosines of the place in the series `[T, H]`."""
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(0, size, 2) / size)
    phase = jnp.arange(length)[:, None] * rates
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)[:, :size]


def transformer(
    num_outputs: int,
    *,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_layers: int = 2,
    positional: bool = True,
) -> Network:
    """Embed rows by attention: series with their positions, or sets without.

    Args:
        num_outputs: length of the output vector.
        hidden_size: width of a token, a multiple of `num_heads`.
        num_heads: attention heads.
        num_layers: blocks of attention and perceptron.
        positional: whether the order of the rows counts.

    Returns:
        A network of x with leaves `[T, ...]`, or of `Trials`, whose mask hides
        padding.

    Raises:
        ValueError: a size is below 1 or no multiple of `num_heads`; (when called)
            leaves of unequal lengths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import transformer
        >>> net = transformer(8)
        >>> series = jnp.linspace(0.0, 1.0, 20)
        >>> params = net.init(jax.random.key(0), series)
        >>> net.apply(params, series).shape
        (8,)

    Reference:
        Vaswani et al. Attention is all you need, 2017.
        Lee, Lee, Kim, Kosiorek, Choi, Teh. Set transformer, 2019.
    """
    check_sizes(num_outputs, num_heads, num_layers)
    check_heads(hidden_size, num_heads)
    module = _Transformer(num_outputs, hidden_size, num_heads, num_layers, positional)
    return to_network(module)


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise a `ValueError` unless the width divides into heads."""
    check_sizes(hidden_size)
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_heads={num_heads}, got "
            f"{hidden_size}."
        )
