"""Pairs that an estimator is judged by."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import PyTree, Simulations

__all__ = ["held_out"]


def held_out(sims: Simulations) -> tuple[PyTree, PyTree]:
    """Theta and x of the pairs of non-zero weight.

    Raises:
        ValueError: there are none, or their weights differ.
    """
    weight = np.asarray(sims.weight)
    keep = np.flatnonzero(weight != 0)
    if len(keep) == 0:
        raise ValueError("sims holds no pair of non-zero weight to check.")
    if not np.all(weight[keep] == weight[keep[0]]):
        raise ValueError(
            "sims must be drawn from the joint p(theta) p(x | theta): its weights "
            "must be 0 or one common value, got several. Simulate from the prior."
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[keep], (sims.theta, sims.x))
