"""Coupling layers: one half of the vector moves, the other half says how.

    z_a = y_a,   z_b = g(y_b; h(y_a, c)),   log |det| = sum log g'(y_b).

Only the free half goes through the elementwise map, which is where the time of
a spline flow is spent.
"""

from collections.abc import Callable

import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.densities.elementwise import Elementwise
from sbijax.densities.flow import Layer
from sbijax.networks import resnet

__all__ = ["coupling"]


def coupling(
    elementwise: Elementwise, *, conditioner: Callable[[int], Network] | None = None
) -> Layer:
    """A coupling layer around an elementwise map.

    Args:
        elementwise: the map of the free half.
        conditioner: makes, for a number of outputs, the network of `(y_a, c)`
            that gives its parameters; by default a residual network whose
            output starts at zero, so that the layer starts as the identity.
            For `D = 1` the fixed half is empty and the network sees only `c`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.densities import coupling, spline
        >>> layer = coupling(spline())
        >>> y, context = jnp.zeros(3), jnp.zeros(2)
        >>> net = layer.init(jax.random.key(0), y, context)
        >>> layer.forward(net, y, context)[0].shape
        (3,)

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP, 2017.
    """

    def split(y: Array) -> tuple[Array, Array, Network]:
        fixed, free = y[: y.size // 2], y[y.size // 2 :]
        num_outputs = free.size * elementwise.num_params
        if conditioner is None:
            return fixed, free, resnet(num_outputs, zero_output=True)
        return fixed, free, conditioner(num_outputs)

    def init_fn(key: Array, y: Array, context: Array) -> PyTree:
        fixed, _, network = split(y)
        return network.init(key, fixed, context)

    def forward_fn(net: PyTree, y: Array, context: Array) -> tuple[Array, Array]:
        fixed, free, network = split(y)
        params = network.apply(net, fixed, context).reshape(free.size, -1)
        moved, log_slope = elementwise.forward(free, params)
        return jnp.concatenate([fixed, moved]), jnp.sum(log_slope)

    def inverse_fn(net: PyTree, z: Array, context: Array) -> Array:
        fixed, moved, network = split(z)
        params = network.apply(net, fixed, context).reshape(moved.size, -1)
        return jnp.concatenate([fixed, elementwise.inverse(moved, params)])

    return Layer(init_fn, forward_fn, inverse_fn)
