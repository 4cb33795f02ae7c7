"""Mixed discrete and continuous vectors.

    q(d, y | c) = prod_j q(d_j | d_<j, c) q(y | d, c),

with a categorical distribution of each whole number d_j in 0, ..., K_j - 1 and
any density of the continuous rest y given them all.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sbijax.base import Array, Density, Network, PyTree
from sbijax.checks import check_count, check_record
from sbijax.networks import resnet

__all__ = ["mixed"]


def mixed(
    density: Density,
    *,
    num_categories: Sequence[int],
    network: Callable[[int], Network] | None = None,
) -> Density:
    """A density whose first entries are whole numbers with few values.

    Its `log_prob` is a probability in the discrete entries and a density in the
    others, -inf where an entry is none of its categories.

    Args:
        density: of the continuous entries that follow; it is not used if there
            are none.
        num_categories: number of values K_j of each discrete entry.
        network: makes, for a number of outputs, the network from the context
            and the previous discrete entries (one-hot) to the logits; by default
            a residual network.

    Raises:
        ValueError: no discrete entries, or one with fewer than one value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.densities import maf, mixed
        >>> density = mixed(maf(), num_categories=[2])
        >>> y, context = jnp.array([1.0, 0.3]), jnp.zeros(2)
        >>> net = density.init(jax.random.key(0), y, context)
        >>> round(float(density.log_prob(net, y, context)), 3)  # log 1/2 + log N(.3)
        -1.657

    Reference:
        Boelts, Lueckmann, Gao, Macke. Flexible and efficient simulation-based
        inference for models of decision-making, 2022.
    """
    check_record(density, Density, "density", "Make one with densities.maf().")
    sizes = tuple(check_count(size, "num_categories") for size in num_categories)
    num_discrete = check_count(len(sizes), "the number of discrete entries")

    def logits_of(j: int) -> Network:
        if network is None:
            return resnet(sizes[j], zero_output=True)
        return network(sizes[j])

    def one_hot(j: int, value: Array) -> Array:
        return jax.nn.one_hot(value.astype(int), sizes[j], dtype=value.dtype)

    def init_fn(key: Array, y: Array, context: Array) -> PyTree:
        density_key, *keys = jax.random.split(key, num_discrete + 1)
        logits = []
        for j, logits_key in enumerate(keys):
            logits.append(logits_of(j).init(logits_key, context))
            context = jnp.concatenate([context, one_hot(j, y[j])])
        rest = y[num_discrete:]
        net = density.init(density_key, rest, context) if rest.size else {}
        return {"logits": logits, "rest": net}

    def log_prob_fn(net: PyTree, y: Array, context: Array) -> Array:
        total, possible = jnp.zeros((), y.dtype), jnp.array(True)
        for j, params in enumerate(net["logits"]):
            log_prob = jax.nn.log_softmax(logits_of(j).apply(params, context))
            hot = one_hot(j, y[j])
            total = total + jnp.sum(hot * log_prob)
            possible &= (y[j] == jnp.round(y[j])) & (y[j] >= 0) & (y[j] < sizes[j])
            context = jnp.concatenate([context, hot])
        if y.size > num_discrete:
            rest = y[num_discrete:]
            total = total + density.log_prob(net["rest"], rest, context)
        return jnp.where(possible, total, -jnp.inf)

    def sample_fn(
        net: PyTree, key: Array, context: Array, *, shape: tuple[int, int]
    ) -> Array:
        num_samples, num_dims = shape
        num_rest = num_dims - num_discrete

        def draw(key: Array) -> Array:
            density_key, *keys = jax.random.split(key, num_discrete + 1)
            seen, values = context, []
            for j, value_key in enumerate(keys):
                logits = logits_of(j).apply(net["logits"][j], seen)
                value = jax.random.categorical(value_key, logits).astype(seen.dtype)
                values.append(value)
                seen = jnp.concatenate([seen, one_hot(j, value)])
            discrete = jnp.stack(values)
            if not num_rest:
                return discrete
            rest = density.sample(net["rest"], density_key, seen, shape=(1, num_rest))
            return jnp.concatenate([discrete, rest[0]])

        return jax.vmap(draw)(jax.random.split(key, num_samples))

    return Density(init_fn, log_prob_fn, sample_fn)
