"""Masked autoregressive layers: dimension i is moved given dimensions before it.

    z_i = g(y_i; h_i(y_1, ..., y_{i-1}, c)),   log |det| = sum_i log g'(y_i).

One masked network gives all h_i at once (MADE).  A draw needs them in turn,
but every unit only once, as soon as the dimensions that it sees are known: no
more multiplications than a density, in D small steps.  Written out, these are
long to compile, so beyond `MAX_WRITTEN_OUT` dimensions a loop of D full passes
takes their place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, Network, PyTree
from sbijax.checks import check_count
from sbijax.densities.elementwise import Elementwise
from sbijax.densities.flow import Layer
from sbijax.networks._layers import dense, spread, to_network

__all__ = ["_Made", "autoregressive"]

MAX_WRITTEN_OUT = 16

Degrees = tuple[int, ...]


class _MaskedDense(nn.Module):
    """A linear map whose outputs see no input of a higher degree than theirs.

    Degrees are sorted, so the matrix is block-triangular.
    """

    inputs: Degrees
    outputs: Degrees
    zero: bool = False

    def setup(self) -> None:
        initial = nn.initializers.zeros if self.zero else spread
        shape = (len(self.inputs), len(self.outputs))
        self.kernel = self.param("kernel", initial, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    def __call__(self, h: Array) -> Array:
        mask = np.less_equal.outer(self.inputs, self.outputs)
        return h @ (self.kernel * mask) + self.bias

    def share(self, h: Array, degree: int) -> Array:
        """What the inputs of one degree add to the outputs of at least that degree."""
        rows = slice(*np.searchsorted(self.inputs, [degree, degree + 1]))
        return h @ self.kernel[rows, np.searchsorted(self.outputs, degree) :]


class _Made(nn.Module):
    """Residual network with outputs `[D, num_params]`, row i blind to y_i and after.

    Every dimension has `num_inputs` numbers in the input vector.  With dimensions
    counted from 0, those of y_i have degree i + 1 and its parameters have
    degree i.  Hidden units have degrees 0..D-1; degree 0 sees only the context.
    """

    num_dims: int
    num_inputs: int
    num_params: int
    hidden_size: int
    num_blocks: int
    activation: Callable[[Array], Array]

    def setup(self) -> None:
        dims = range(self.num_dims)
        hidden = tuple(sorted(i % self.num_dims for i in range(self.hidden_size)))
        inputs = tuple(i + 1 for i in dims for _ in range(self.num_inputs))
        outputs = tuple(i for i in dims for _ in range(self.num_params))
        self.context = dense(self.hidden_size)
        self.enter = _MaskedDense(inputs, hidden)
        self.stay = [_MaskedDense(hidden, hidden) for _ in range(2 * self.num_blocks)]
        self.leave = _MaskedDense(hidden, outputs, zero=True)

    def __call__(self, y: Array, context: Array) -> Array:
        """Row i, from the numbers of the dimensions before i and the context."""
        h = self.enter(y) + self._of_context(context)
        for k in range(0, 2 * self.num_blocks, 2):
            r = self.stay[k](self.activation(h))
            h = h + self.stay[k + 1](self.activation(r))
        out = self.leave(self.activation(h))
        return out.reshape(self.num_dims, self.num_params)

    def _of_context(self, context: Array) -> Array:
        # Optimizers and checkpoints do not like a kernel without numbers.
        zero = jnp.zeros(self.hidden_size, context.dtype)
        return self.context(context) if context.size else zero

    def solve(
        self, z: Array, context: Array, inverse: Callable[[Array, Array], Array]
    ) -> Array:
        """The y with `y = inverse(z, self(y, context))`, of one number per dimension.

        Degree by degree: the units of a degree are complete when those below
        are, and then add their share to all that is still waiting.
        """
        layers = (self.enter, *self.stay, self.leave)
        waiting = [layer.bias for layer in layers]
        waiting[0] = waiting[0] + self._of_context(context)

        def add(k: int, h: Array, degree: int) -> None:
            waiting[k] = waiting[k] + layers[k].share(h, degree)

        def complete(k: int, degree: int) -> Array:
            count = layers[k].outputs.count(degree)
            done, waiting[k] = waiting[k][:count], waiting[k][count:]
            return done

        y = []
        for i in range(self.num_dims):
            h = complete(0, i)
            for k in range(1, len(layers) - 1, 2):
                add(k, self.activation(h), i)
                add(k + 1, self.activation(complete(k, i)), i)
                h = h + complete(k + 1, i)
            add(-1, self.activation(h), i)
            y.append(inverse(z[i : i + 1], complete(-1, i)[None]))
            add(0, y[-1], i + 1)
        return jnp.concatenate(y)


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
        hidden_size: width of the masked residual network, D if that is more.
        num_blocks: its number of residual blocks.
        activation: its nonlinearity.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is below 1.

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
    hidden_size = check_count(hidden_size, "hidden_size")
    num_blocks = check_count(num_blocks, "num_blocks")

    def network(num_dims: int) -> tuple[Network, Callable[..., Array]]:
        # Every dimension needs a hidden unit of its degree.
        width = max(hidden_size, num_dims)
        made = _Made(num_dims, 1, elementwise.num_params, width, num_blocks, activation)
        solve: Any = partial(made.apply, method=made.solve)
        return to_network(made), solve

    def init_fn(key: Array, y: Array, context: Array) -> PyTree:
        made, _ = network(y.size)
        return made.init(key, y, context)

    def forward_fn(net: PyTree, y: Array, context: Array) -> tuple[Array, Array]:
        made, _ = network(y.size)
        z, log_slope = elementwise.forward(y, made.apply(net, y, context))
        return z, jnp.sum(log_slope)

    def inverse_fn(net: PyTree, z: Array, context: Array) -> Array:
        made, solve = network(z.size)
        if z.size <= MAX_WRITTEN_OUT:
            return solve(net, z, context, elementwise.inverse)

        def fill(y: Array, i: Array) -> tuple[Array, None]:
            full = elementwise.inverse(z, made.apply(net, y, context))
            return y.at[i].set(full[i]), None

        return jax.lax.scan(fill, jnp.zeros_like(z), jnp.arange(z.size))[0]

    return Layer(init_fn, forward_fn, inverse_fn)
