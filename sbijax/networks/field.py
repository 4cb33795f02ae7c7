"""Networks for the field of a diffusion: (u [D], angle, context) -> [D].

The angle enters as sines and cosines of the log noise ratio,

    s = log((sin(phi) + 1e-3) / (cos(phi) + 1e-3)),

so that a posterior a hundred times narrower than the prior has as many of them as
one of the same width.
"""

import flax.linen as nn
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import (
    Activation,
    _Join,
    check_sizes,
    dense,
    output_layer,
    to_network,
)
from sbijax.networks.transformer import Block, check_heads

__all__ = ["field_resnet", "field_transformer"]

_NUM_FREQUENCIES = 12
_MIN_RATIO = 1e-3


def angle_features(angle: Array) -> Array:
    """Smooth features `[2 * 12]` of an angle from 0 to pi / 2."""
    noise, signal = jnp.sin(angle) + _MIN_RATIO, jnp.cos(angle) + _MIN_RATIO
    log_ratio = jnp.log(noise) - jnp.log(signal)
    frequencies = jnp.geomspace(0.1, 3.0, _NUM_FREQUENCIES, dtype=log_ratio.dtype)
    phase = frequencies * log_ratio
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)])


class _FieldResNet(nn.Module):
    hidden_size: int
    num_blocks: int
    activation: Activation

    @nn.compact
    def __call__(self, u: Array, angle: Array, context: PyTree) -> Array:
        condition = _Join(self.hidden_size)(angle_features(angle), context)
        condition = self.activation(condition)
        h = _Join(self.hidden_size)(u)
        for _ in range(self.num_blocks):
            shift = dense(self.hidden_size)(condition)
            r = self.activation(h + shift)
            r = self.activation(dense(self.hidden_size)(r))
            h = h + dense(self.hidden_size)(r)
        return output_layer(u.shape[-1], zero=True)(self.activation(h))


class _FieldTransformer(nn.Module):
    hidden_size: int
    num_heads: int
    num_layers: int
    num_context_tokens: int

    @nn.compact
    def __call__(self, u: Array, angle: Array, context: PyTree) -> Array:
        size, num_dims = self.hidden_size, u.shape[-1]
        at = nn.silu(dense(size)(angle_features(angle)))
        places = self.param("places", nn.initializers.constant(0.01), (num_dims, size))
        of_theta = dense(size)(u[:, None]) + places
        of_data = _Join(self.num_context_tokens * size)(context)
        h = jnp.concatenate([of_theta, of_data.reshape(-1, size)])
        mask = jnp.ones(len(h), bool)
        for _ in range(self.num_layers):
            h = Block(size, self.num_heads)(h + dense(size)(at), mask)
        return output_layer(1, zero=True)(nn.LayerNorm()(h[:num_dims]))[:, 0]


def field_resnet(
    *,
    hidden_size: int = 128,
    num_blocks: int = 3,
    activation: Activation = nn.silu,
) -> Network:
    """Residual perceptron whose blocks are shifted by the angle and the context.

    What comes from the angle and the context alone is computed once for all draws.

    Args:
        hidden_size: width of every block.
        num_blocks: number of residual blocks.
        activation: elementwise nonlinearity.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import field_resnet
        >>> net = field_resnet()
        >>> inputs = jnp.zeros(3), jnp.array(0.5), jnp.zeros(8)
        >>> net.apply(net.init(jax.random.key(0), *inputs), *inputs).shape
        (3,)
    """
    check_sizes(hidden_size, num_blocks)
    module = _FieldResNet(hidden_size, num_blocks, activation)
    return to_network(module)


def field_transformer(
    *,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_layers: int = 3,
    num_context_tokens: int = 4,
) -> Network:
    """Attention among one token for each parameter and a few for the context.

    For many parameters that depend on each other in groups.

    Args:
        hidden_size: width of a token, a multiple of `num_heads`.
        num_heads: attention heads.
        num_layers: blocks of attention and perceptron.
        num_context_tokens: tokens that the context is mapped to.

    Raises:
        ValueError: a size is below 1 or no multiple of `num_heads`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import field_transformer
        >>> net = field_transformer()
        >>> inputs = jnp.zeros(3), jnp.array(0.5), jnp.zeros(8)
        >>> net.apply(net.init(jax.random.key(0), *inputs), *inputs).shape
        (3,)

    Reference:
        Gloeckler, Deistler, Weilbach, Wood, Macke. All-in-one simulation-based
        inference, 2024.
    """
    check_sizes(num_heads, num_layers, num_context_tokens)
    check_heads(hidden_size, num_heads)
    module = _FieldTransformer(hidden_size, num_heads, num_layers, num_context_tokens)
    return to_network(module)
