"""The compiled part of simulation-based calibration."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import Array, Estimator, PyTree
from sbijax.checks import describe
from sbijax.diagnostics._names import to_matrix

__all__ = ["Quantities", "rank_replicates"]

Quantities = Callable[[PyTree, PyTree], dict[str, Array]]


@partial(
    jax.jit, static_argnames=("estimator", "quantities", "num_samples", "chunk_size")
)
def rank_replicates(
    key: Array,
    estimator: Estimator,
    params: PyTree,
    theta: PyTree,
    x: PyTree,
    quantities: Quantities | None,
    num_samples: int,
    chunk_size: int,
) -> tuple[Array, Array]:
    """Rank the truth of each pair among posterior draws, all in one program.

    Args:
        key: PRNG key.
        estimator: the estimator.
        params: its parameters.
        theta: leaves `[N, ...]`.
        x: leaves `[N, ...]`.
        quantities: `(theta, x) -> {name: scalar}`, or None.
        num_samples: posterior draws per pair, S.
        chunk_size: pairs handled at once.

    Returns:
        Ranks `[N, P]` from 0 to S, ties broken at random, and `[N]` whether
        draws and quantities of the replicate were numbers.
    """

    def rank_one(args: tuple[Array, PyTree, PyTree]) -> tuple[Array, Array]:
        key, theta, x = args
        draw_key, tie_key = jax.random.split(key)
        draws, _ = estimator.sample(params, draw_key, x, num_samples=num_samples)
        _check_draws(draws, theta, num_samples)
        evaluate = partial(_quantities, estimator, quantities, params)
        truth = evaluate(theta, x)
        values = jax.vmap(evaluate, in_axes=(0, None))(draws, x)
        finite = jnp.all(jnp.isfinite(to_matrix(draws, num_batch_axes=1)))
        valid = finite & ~jnp.any(jnp.isnan(truth)) & ~jnp.any(jnp.isnan(values))
        less = jnp.sum(values < truth, axis=0)
        ties = jnp.sum(values == truth, axis=0)
        return less + jax.random.randint(tie_key, less.shape, 0, ties + 1), valid

    num_replicates = len(jax.tree.leaves(theta)[0])
    num_rows = chunk_size * -(-num_replicates // chunk_size)
    rows = jnp.arange(num_rows)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    pairs = jax.tree.map(lambda leaf: leaf[rows % num_replicates], (theta, x))
    out = jax.lax.map(rank_one, (keys, *pairs), batch_size=chunk_size)
    return jax.tree.map(lambda leaf: leaf[:num_replicates], out)


def _quantities(
    estimator: Estimator,
    quantities: Quantities | None,
    params: PyTree,
    theta: PyTree,
    x: PyTree,
) -> Array:
    """Everything that is ranked, [P], for one theta and one x."""
    columns = [to_matrix(theta)]
    if estimator.log_prob is not None:
        columns.append(estimator.log_prob(params, theta, x)[None])
    if quantities is not None:
        columns.append(to_matrix(quantities(theta, x)))
    return jnp.concatenate(columns)


def _check_draws(draws: PyTree, theta: PyTree, num_samples: int) -> None:
    expected = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num_samples, *leaf.shape), leaf.dtype),
        theta,
    )
    same = jax.tree.structure(draws) == jax.tree.structure(expected) and all(
        a.shape == b.shape
        for a, b in zip(jax.tree.leaves(draws), jax.tree.leaves(expected), strict=True)
    )
    if not same:
        raise ValueError(
            f"estimator.sample returned {describe(draws)}, but theta in sims "
            f"calls for {describe(expected)}."
        )
