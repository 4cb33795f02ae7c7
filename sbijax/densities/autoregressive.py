"""Masked autoregressive layers: dimension i is moved given dimensions before it.

    z_i = g(y_i; h_i(y_1, ..., y_{i-1}, c)),   log |det| = sum_i log g'(y_i).

One masked network gives all h_i at once (MADE), so a density costs one pass
and a draw costs D passes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Network, PyTree
from sbijax.densities.elementwise import Elementwise
from sbijax.densities.flow import Layer

__all__ = ["autoregressive"]


class _MaskedDense(nn.Module):
    """A linear map whose weights are multiplied by a fixed 0/1 mask."""

    mask: np.ndarray
    zero: bool = False

    @nn.compact
    def __call__(self, h: Array) -> Array:
        initial = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
        kernel = self.param("kernel", initial, self.mask.shape)
        bias = self.param("bias", nn.initializers.zeros, self.mask.shape[1:])
        return h @ (kernel * self.mask) + bias


class _Made(nn.Module):
    """Residual network with outputs `[D, num_params]`, row i blind to y_i and after."""

    num_dims: int
    num_params: int
    hidden_size: int
    num_blocks: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, y: Array, context: Array) -> Array:
        degree_in = np.arange(1, self.num_dims + 1)
        # Hidden degrees run over 0..D-1: degree 0 sees only the context.
        degree = np.arange(self.hidden_size) % self.num_dims
        degree_out = np.repeat(degree_in, self.num_params)
        enter = (degree_in[:, None] <= degree).astype(np.float32)
        stay = (degree[:, None] <= degree).astype(np.float32)
        leave = (degree[:, None] < degree_out).astype(np.float32)
        shared = nn.Dense(self.hidden_size)(context)
        h = _MaskedDense(enter)(y) + shared
        for _ in range(self.num_blocks):
            r = _MaskedDense(stay)(self.activation(h))
            h = h + _MaskedDense(stay)(self.activation(r))
        out = _MaskedDense(leave, zero=True)(self.activation(h))
        return out.reshape(self.num_dims, self.num_params)


def autoregressive(
    elementwise: Elementwise,
    *,
    hidden_size: int = 64,
    num_blocks: int = 2,
    activation: Callable[[Array], Array] = nn.silu,
) -> Layer:
    """A masked autoregressive layer around an elementwise map.

    Args:
        elementwise: the map of every dimension.
        hidden_size: width of the masked residual network; at least `D`.
        num_blocks: its number of residual blocks.
        activation: its nonlinearity.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.densities import affine, autoregressive
        >>> layer = autoregressive(affine())
        >>> y, context = jnp.zeros(3), jnp.zeros(2)
        >>> net = layer.init(jax.random.key(0), y, context)
        >>> layer.forward(net, y, context)[0].shape
        (3,)

    Reference:
        Germain, Gregor, Murray, Larochelle. MADE, 2015.
        Papamakarios, Pavlakou, Murray. Masked autoregressive flow, 2017.
    """

    def network(num_dims: int) -> Network:
        if hidden_size < num_dims:
            raise ValueError(
                f"hidden_size must be at least the number of dimensions, got "
                f"{hidden_size} for {num_dims}."
            )
        made = _Made(
            num_dims, elementwise.num_params, hidden_size, num_blocks, activation
        )
        return Network(made.init, made.apply)

    def init_fn(key: Array, y: Array, context: Array) -> PyTree:
        return network(y.size).init(key, y, context)

    def forward_fn(net: PyTree, y: Array, context: Array) -> tuple[Array, Array]:
        z, log_slope = elementwise.forward(y, network(y.size).apply(net, y, context))
        return z, jnp.sum(log_slope)

    def inverse_fn(net: PyTree, z: Array, context: Array) -> Array:
        def fill(y: Array, i: Array) -> tuple[Array, None]:
            full = elementwise.inverse(z, network(z.size).apply(net, y, context))
            return y.at[i].set(full[i]), None

        return jax.lax.scan(fill, jnp.zeros_like(z), jnp.arange(z.size))[0]

    return Layer(init_fn, forward_fn, inverse_fn)
