"""Theta pytrees as named columns on the host."""

import jax
import numpy as np
import numpy.typing as npt

from sbijax.base import PyTree
from sbijax.checks import describe

__all__ = ["draws_matrix", "flat_dict", "point_vector", "scalar_names"]

_Floats = npt.NDArray[np.float64]


def scalar_names(theta: PyTree, num_batch_axes: int, bare: str) -> tuple[str, ...]:
    """Names such as `alpha` and `beta[0]`, in the order of the leaves.

    Args:
        theta: pytree of arrays.
        num_batch_axes: leading axes of each leaf that are not parameters.
        bare: what to call an array that is not in a dict.
    """
    names = []
    for stem, leaf in flat_dict(theta, bare).items():
        shape = np.shape(leaf)[num_batch_axes:]
        for index in np.ndindex(*shape):
            suffix = f"[{', '.join(map(str, index))}]" if shape else ""
            names.append(stem + suffix)
    return tuple(names)


def flat_dict(tree: PyTree, bare: str) -> dict[str, PyTree]:
    """Leaves by name: `a`, `group.a`, `a[0]` for sequences, `bare` for an array."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        stem = ""
        for entry in path:
            if isinstance(entry, jax.tree_util.SequenceKey):
                stem = f"{stem or bare}[{entry.idx}]"
            else:
                is_field = isinstance(entry, jax.tree_util.GetAttrKey)
                label = entry.name if is_field else entry.key
                stem = f"{stem}.{label}" if stem else str(label)
        named[stem or bare] = leaf
    return named


def draws_matrix(draws: PyTree, name: str) -> _Floats:
    """Draws with leaves `[S, ...]` as finite float64 `[S, D]`, or say why not."""
    leaves = [np.asarray(leaf, dtype=np.float64) for leaf in jax.tree.leaves(draws)]
    sizes = {len(leaf) if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"{name} must be [S, D] or a pytree with leaves [S, ...] of one length "
            f"S, got {describe(draws)}."
        )
    matrix = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    num_bad = int(np.sum(~np.isfinite(matrix).all(axis=1)))
    if num_bad:
        raise ValueError(
            f"{name} holds non-finite values in {num_bad} of {len(matrix)} draws."
        )
    return matrix


def point_vector(point: PyTree, name: str) -> _Floats:
    """One theta as float64 `[D]`."""
    leaves = [np.asarray(leaf, dtype=np.float64) for leaf in jax.tree.leaves(point)]
    if not leaves:
        raise ValueError(f"{name} holds no values.")
    return np.concatenate([leaf.ravel() for leaf in leaves])
