"""Convolutional embeddings of series and images on a regular grid.

Every stage is a convolution, and one of stride 2 that halves the grid.  Of what is left
the lowest frequencies are joined, the mean among them: averages over a series need not
be learned, and the place of a feature is not lost.  Convolutions are written as
products of shifted grids with matrices: XLA's own take 20 to 30 times as long on a CPU
when they stand in a loop, as those of a training do.
"""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Network
from sbijax.checks import describe
from sbijax.networks._layers import Activation, check_sizes, dense, to_network

__all__ = ["conv_1d", "conv_2d"]


class _Conv(nn.Module):
    """What `nn.Conv` with zeros around the grid computes: a linear map of patches."""

    features: int
    window: tuple[int, ...]
    stride: int = 1

    @nn.compact
    def __call__(self, h: Array) -> Array:
        sizes = [-(-size // self.stride) for size in h.shape[:-1]]
        spans = [(size - 1) * self.stride + 1 for size in sizes]
        padding = [
            max(span - 1 + width - size, 0)
            for span, width, size in zip(spans, self.window, h.shape[:-1], strict=True)
        ]
        h = jnp.pad(h, [(p // 2, p - p // 2) for p in padding] + [(0, 0)])
        patches = [
            h[
                tuple(
                    slice(start, start + span, self.stride)
                    for start, span in zip(corner, spans, strict=True)
                )
            ]
            for corner in itertools.product(*map(range, self.window))
        ]
        return dense(self.features)(jnp.concatenate(patches, axis=-1))


class _Convolution(nn.Module):
    num_outputs: int
    num_axes: int
    channels: tuple[int, ...]
    kernel_size: int
    num_frequencies: int
    hidden_size: int
    activation: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self._with_channels(x)
        window = (self.kernel_size,) * self.num_axes
        for size in self.channels:
            h = self.activation(_Conv(size, window)(h))
            h = self.activation(_Conv(size, window, stride=2)(h))
        for axis in range(self.num_axes):
            h = _low_frequencies(h, axis, self.num_frequencies)
        h = self.activation(dense(self.hidden_size)(jnp.ravel(h)))
        return dense(self.num_outputs)(h)

    def _with_channels(self, x: Array) -> Array:
        """The grid, and all further axes as channels."""
        if getattr(x, "ndim", 0) < self.num_axes:
            grid = "[T] or [T, C]" if self.num_axes == 1 else "[H, W] or [H, W, C]"
            raise ValueError(f"x must be one array {grid}, got {describe(x)}.")
        return x.reshape(*x.shape[: self.num_axes], -1)


def _low_frequencies(h: Array, axis: int, num: int) -> Array:
    """The first coefficients of a cosine transform along one axis, all if `num` >= n.

    h_n = c_0 + sum_k c_k cos(pi k (n + 1/2) / N), so that c_0 is the mean.
    """
    size = h.shape[axis]
    order, place = np.arange(min(num, size))[:, None], np.arange(size) + 0.5
    waves = np.cos(np.pi * order * place / size) * np.where(order, 2.0, 1.0) / size
    return jnp.moveaxis(jnp.tensordot(waves.astype(h.dtype), h, (1, axis)), 0, axis)


def conv_1d(
    num_outputs: int,
    *,
    channels: Sequence[int] = (16, 32, 64),
    kernel_size: int = 5,
    num_frequencies: int = 4,
    hidden_size: int = 64,
    activation: Activation = nn.relu,
) -> Network:
    """Embed a series `[T]` or `[T, C]` by convolutions.

    Args:
        num_outputs: length of the output vector.
        channels: channels of each stage; every stage halves the length.
        kernel_size: points that a convolution sees.
        num_frequencies: how many of the lowest are kept of what is left of the
            series; 1 keeps its mean only, where time does not matter.
        hidden_size: width of the layer that joins them.
        activation: elementwise nonlinearity.

    Raises:
        ValueError: a size is below 1; (when called) x is no such array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import conv_1d
        >>> net = conv_1d(8)
        >>> params = net.init(jax.random.key(0), jnp.zeros(50))
        >>> net.apply(params, jnp.zeros(50)).shape
        (8,)

    Reference:
        LeCun, Bottou, Bengio, Haffner. Gradient-based learning applied to document
        recognition, 1998.
    """
    return _convolution(
        1, num_outputs, channels, kernel_size, num_frequencies, hidden_size, activation
    )


def conv_2d(
    num_outputs: int,
    *,
    channels: Sequence[int] = (8, 16, 32),
    kernel_size: int = 3,
    num_frequencies: int = 4,
    hidden_size: int = 64,
    activation: Activation = nn.relu,
) -> Network:
    """Embed an image `[H, W]` or `[H, W, C]` by convolutions.

    Args:
        num_outputs: length of the output vector.
        channels: channels of each stage; every stage halves height and width.
        kernel_size: height and width that a convolution sees.
        num_frequencies: how many of the lowest are kept, along each axis, of what
            is left of the image; 1 keeps its mean only, where places do not matter.
        hidden_size: width of the layer that joins them.
        activation: elementwise nonlinearity.

    Raises:
        ValueError: a size is below 1; (when called) x is no such array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.networks import conv_2d
        >>> net = conv_2d(8)
        >>> params = net.init(jax.random.key(0), jnp.zeros((16, 16)))
        >>> net.apply(params, jnp.zeros((16, 16))).shape
        (8,)

    Reference:
        LeCun, Bottou, Bengio, Haffner. Gradient-based learning applied to document
        recognition, 1998.
    """
    return _convolution(
        2, num_outputs, channels, kernel_size, num_frequencies, hidden_size, activation
    )


def _convolution(
    num_axes: int,
    num_outputs: int,
    channels: Sequence[int],
    kernel_size: int,
    num_frequencies: int,
    hidden_size: int,
    activation: Activation,
) -> Network:
    check_sizes(num_outputs, *channels, kernel_size, num_frequencies, hidden_size)
    module = _Convolution(
        num_outputs,
        num_axes,
        tuple(channels),
        kernel_size,
        num_frequencies,
        hidden_size,
        activation,
    )
    return to_network(module)
