"""How much the entries of x have to do with theta.

With few simulations a network fits the noise of entries that tell nothing of theta.
Of the variance of an entry v, or of v^2, a regression on the p columns of (z, z^2)
explains a share R^2 that would be p / N by chance alone, with standard deviation
(2 p)^.5 / N.  The weight of the entry is shrunk by as much as chance may explain,

    max(1 - (p + 3 (2 p)^.5) / (N R^2), .03),

so it tends to 1 wherever mean or variance depend on theta, as N grows; with too few
simulations to tell, all weigh the same.  No entry is left out, for it may matter in
the company of others, like a known error: the scale of every entry goes on from its
weight as training finds it.

A network that also sees what a linear regression on x predicts of z needs the entries
for the rest alone.  There they weigh what they have to do with the residual, and at
least .01, and the prediction weighs what it has to do with z: of a hundred entries of
which only a sum matters, the sum is left.
"""

import jax
import jax.numpy as jnp

from sbijax.base import Array, Network, PyTree
from sbijax.data import data_nodes, flatten, is_trials
from sbijax.networks.linear import exact_matmul, stride

__all__ = ["fit_relevance", "fit_relevance_beyond", "weigh", "with_scales"]

_DEVIATIONS = 3.0
_LEAST, _LEAST_BEYOND = 0.03, 0.01
_RIDGE = 1e-4


def fit_relevance(values: PyTree, x: PyTree, z: Array, weight: Array) -> list[Array]:
    """Weights of the entries of x between .03 and 1, that of the most relevant.

    Args:
        values: standardised x, leaves `[N, ...]`.
        x: what it was before; entries that became pairs keep weight 1, and so do
            `Trials`, whose rows say little one by one.
        z: vector form of theta `[N, D]`.
        weight: `[N]`; rows of weight 0 must be finite and have no effect.

    Returns:
        An array `[...]` for each leaf or `Trials` of x.

    Reference:
        Fan, Lv. Sure independence screening for ultrahigh dimensional feature space,
        2008.
        James, Stein. Estimation with quadratic loss, 1961.
    """
    return _relative(_shrunken(values, x, z, weight, _LEAST))


def fit_relevance_beyond(
    values: PyTree, x: PyTree, z: Array, weight: Array, predicted: Array, rest: Array
) -> list[Array]:
    """Weights of the entries of x beside a prediction of z, and those of the latter.

    Args:
        values: standardised x, leaves `[N, ...]`.
        x: what it was before.
        z: vector form of theta `[N, D]`.
        weight: `[N]`; rows of weight 0 must be finite and have no effect.
        predicted: what a regression on x predicts of z, `[N, D]`.
        rest: the residual of z, `[N, D]`.

    Returns:
        An array `[...]` for each leaf or `Trials` of x, and one of `[D]`; the largest
        number is 1.
    """
    entries = _shrunken(values, x, rest, weight, _LEAST_BEYOND)
    of_predicted = _shrunken(predicted, predicted, z, weight, _LEAST_BEYOND)
    return _relative(entries + of_predicted)


def _shrunken(
    values: PyTree, x: PyTree, z: Array, weight: Array, least: float
) -> list[Array]:
    """Share of the variance that `z` explains, less what chance may explain."""
    step = stride(len(weight), max(leaf[0].size for leaf in jax.tree.leaves(values)))
    data = (values, x, z, weight)
    values, x, z, weight = jax.tree.map(lambda leaf: leaf[::step], data)
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    z = _scaled(z, share)
    regressors = jnp.concatenate([z, _scaled(z**2, share)], axis=1)
    gram = exact_matmul(regressors.T, share[:, None] * regressors)
    gram = gram + _RIDGE * jnp.eye(len(gram), dtype=gram.dtype)
    num = len(gram)
    by_chance = num + _DEVIATIONS * (2 * num) ** 0.5
    by_chance = by_chance / jnp.maximum(jnp.sum(weight > 0), 1)

    factor = jnp.linalg.cholesky(gram)

    def explained(v: Array) -> Array:
        cross = regressors.T @ (share[:, None] * _scaled(v, share))
        white = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
        return jnp.sum(white**2, axis=0)

    def of_leaf(leaf: PyTree, before: PyTree) -> Array:
        if is_trials(leaf) or leaf.shape != before.shape:
            return jnp.ones((), z.dtype)
        v = _scaled(leaf.reshape(len(leaf), -1), share)
        r2 = jnp.max(explained(jnp.hstack([v, v**2])).reshape(2, -1), axis=0)
        shrunk = 1.0 - by_chance / jnp.maximum(r2, by_chance)
        return jnp.maximum(shrunk, least).reshape(leaf.shape[1:])

    return list(map(of_leaf, data_nodes(values), data_nodes(x)))


def _relative(weights: list[Array]) -> list[Array]:
    largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in weights]))
    return [leaf / largest for leaf in weights]


def weigh(value: PyTree, relevance: list[Array]) -> PyTree:
    """One standardised x with its entries scaled by their weights."""
    nodes, structure = jax.tree.flatten(value, is_leaf=is_trials)
    scaled = [
        node if is_trials(node) else node * factor
        for node, factor in zip(nodes, relevance, strict=True)
    ]
    return jax.tree.unflatten(structure, scaled)


def with_scales(of_entries: Network) -> Network:
    """Scale each entry of x by a factor that is learned, 1 at the start."""

    def init(key: Array, x: PyTree) -> PyTree:
        entries = flatten(x)
        net = of_entries.init(key, entries)
        return {"log_scale": jnp.zeros_like(entries), "net": net}

    def apply(params: PyTree, x: PyTree) -> Array:
        entries = flatten(x) * jnp.exp(params["log_scale"])
        return of_entries.apply(params["net"], entries)

    return Network(init, apply)


def _scaled(values: Array, share: Array) -> Array:
    """Columns `[N, F]` of mean 0 and variance 1, constant ones 0."""
    centred = values - share @ values
    sd = jnp.sqrt(share @ centred**2)
    return centred / jnp.where(sd > 1e-6, sd, 1.0)
