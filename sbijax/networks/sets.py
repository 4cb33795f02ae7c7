"""Embeddings of sets: the order of the rows, and padding, make no difference.

    h(x_1..T) = rho(mean_t phi(x_t), log(1 + T)).

Any continuous function of a set is of this form.
"""

import flax.linen as nn
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.networks._layers import Activation, check_sizes, dense, to_network
from sbijax.networks.tokens import log_count, masked_mean, to_tokens

__all__ = ["deep_set"]


class _DeepSet(nn.Module):
    num_outputs: int
    hidden_size: int
    num_layers: int
    activation: Activation

    @nn.compact
    def __call__(self, x: PyTree) -> Array:
        values, mask = to_tokens(x)
        h = values
        for _ in range(self.num_layers):
            h = self.activation(dense(self.hidden_size)(h))
        h = dense(self.hidden_size)(h)
        h = jnp.concatenate([masked_mean(h, mask), log_count(mask, h.dtype)])
        for _ in range(self.num_layers):
            h = self.activation(dense(self.hidden_size)(h))
        return dense(self.num_outputs)(h)


def deep_set(
    num_outputs: int,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    activation: Activation = nn.silu,
) -> Network:
    """Embed a set: a network of each row, their mean, and a network of that.

    Args:
        num_outputs: length of the output vector.
        hidden_size: width of all layers.
        num_layers: hidden layers before the mean, and as many after it.
        activation: elementwise nonlinearity.

    Returns:
        A network of x with leaves `[T, ...]`, or of `Trials`, whose mask hides
        padding: one network for sets of every size up to T.

    Raises:
        ValueError: a size is below 1; (when called) leaves of unequal lengths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import sbijax as sj
        >>> net = sj.networks.deep_set(8)
        >>> three = sj.make_trials(jnp.array([0.3, -1.0, 2.0]), num_padded=10)
        >>> params = net.init(jax.random.key(0), three)
        >>> net.apply(params, three).shape
        (8,)

    Reference:
        Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov, Smola. Deep sets, 2017.
    """
    check_sizes(num_outputs, hidden_size, num_layers)
    module = _DeepSet(num_outputs, hidden_size, num_layers, activation)
    return to_network(module)
