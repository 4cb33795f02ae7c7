"""Networks for the field of a diffusion: (u [D], angle, context) -> [D].

The angle enters as sines and cosines of the log noise ratio,

    s = log((sin(phi) + 1e-3) / (cos(phi) + 1e-3)),

so that a posterior a hundred times narrower than the prior has as many of them as
one of the same width.
"""

import flax.linen as nn
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import Activation, _Join, check_sizes, output_layer

__all__ = ["field_resnet"]

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
            shift = nn.Dense(self.hidden_size)(condition)
            r = self.activation(h + shift)
            r = self.activation(nn.Dense(self.hidden_size)(r))
            h = h + nn.Dense(self.hidden_size)(r)
        return output_layer(u.shape[-1], zero=True)(self.activation(h))


def field_resnet(
    *,
    hidden_size: int = 128,
    num_blocks: int = 3,
    activation: Activation = nn.silu,
) -> Network:
    """Residual perceptron whose blocks are shifted by the angle and the context."""
    check_sizes(hidden_size, num_blocks)
    module = _FieldResNet(hidden_size, num_blocks, activation)
    return Network(init=module.init, apply=module.apply)
