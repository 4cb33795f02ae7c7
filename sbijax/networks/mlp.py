"""Multilayer perceptrons, plain and residual.

Both take one or several pytrees: each leaf has its own first linear map and
the results are added,

    h = sum_i W_i u_i + b,

which is a linear map of the concatenation, written so that under `jax.vmap`
an input shared by the whole batch is mapped once.
"""

from collections.abc import Sequence

import flax.linen as nn

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import (
    Activation,
    _Join,
    check_sizes,
    dense,
    output_layer,
    to_network,
)

__all__ = ["mlp", "resnet"]


class _MLP(nn.Module):
    num_outputs: int
    hidden_sizes: tuple[int, ...]
    activation: Activation
    zero_output: bool

    @nn.compact
    def __call__(self, *inputs: PyTree) -> Array:
        if not self.hidden_sizes:
            return _Join(self.num_outputs)(*inputs)
        h = self.activation(_Join(self.hidden_sizes[0])(*inputs))
        for size in self.hidden_sizes[1:]:
            h = self.activation(dense(size)(h))
        return output_layer(self.num_outputs, self.zero_output)(h)


class _ResNet(nn.Module):
    num_outputs: int
    hidden_size: int
    num_blocks: int
    activation: Activation
    zero_output: bool

    @nn.compact
    def __call__(self, *inputs: PyTree) -> Array:
        h = _Join(self.hidden_size)(*inputs)
        for _ in range(self.num_blocks):
            r = dense(self.hidden_size)(self.activation(h))
            r = dense(self.hidden_size)(self.activation(r))
            h = h + r
        return output_layer(self.num_outputs, self.zero_output)(self.activation(h))


def mlp(
    num_outputs: int,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: Activation = nn.silu,
    zero_output: bool = False,
) -> Network:
    """Multilayer perceptron from any number of pytrees to `[num_outputs]`.

    Args:
        num_outputs: length of the output vector.
        hidden_sizes: width of each hidden layer.
        activation: elementwise nonlinearity.
        zero_output: start with an output layer of zeros.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import mlp
        >>> net = mlp(3)
        >>> params = net.init(jax.random.key(0), jnp.zeros(5))
        >>> net.apply(params, jnp.zeros(5)).shape
        (3,)
    """
    check_sizes(num_outputs, *hidden_sizes)
    module = _MLP(num_outputs, tuple(hidden_sizes), activation, zero_output)
    return to_network(module)


def resnet(
    num_outputs: int,
    *,
    hidden_size: int = 64,
    num_blocks: int = 2,
    activation: Activation = nn.silu,
    zero_output: bool = False,
) -> Network:
    """Residual perceptron from any number of pytrees to `[num_outputs]`.

    Pre-activation blocks of two layers.

    Args:
        num_outputs: length of the output vector.
        hidden_size: width of every block.
        num_blocks: number of residual blocks.
        activation: elementwise nonlinearity.
        zero_output: start with an output layer of zeros.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import resnet
        >>> net = resnet(3)
        >>> params = net.init(jax.random.key(0), jnp.zeros(5), jnp.zeros(2))
        >>> net.apply(params, jnp.zeros(5), jnp.zeros(2)).shape
        (3,)

    Reference:
        He, Zhang, Ren, Sun. Identity mappings in deep residual networks, 2016.
    """
    check_sizes(num_outputs, hidden_size, num_blocks)
    module = _ResNet(num_outputs, hidden_size, num_blocks, activation, zero_output)
    return to_network(module)
