"""Names and matrix form of the scalar parameters in a theta pytree."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, PyTree

__all__ = ["scalar_names", "to_matrix"]


def scalar_names(theta: PyTree, num_batch_axes: int = 0) -> tuple[str, ...]:
    """Name every scalar parameter of a pytree, in the order of its leaves.

    Args:
        theta: pytree of arrays.
        num_batch_axes: leading axes of each leaf that are not parameters.

    Returns:
        Names such as `alpha`, `beta[0]`, `group.gamma[1, 2]`; a bare array is
        called `theta`.

    Example:
        >>> import numpy as np
        >>> scalar_names({"alpha": np.zeros(()), "beta": np.zeros(2)})
        ('alpha', 'beta[0]', 'beta[1]')
        >>> scalar_names(np.zeros((100, 2)), num_batch_axes=1)
        ('theta[0]', 'theta[1]')
    """
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        stem = _stem(path)
        shape = np.shape(leaf)[num_batch_axes:]
        for index in np.ndindex(*shape):
            suffix = f"[{', '.join(map(str, index))}]" if shape else ""
            names.append(stem + suffix)
    return tuple(names)


def to_matrix(theta: PyTree, num_batch_axes: int = 0) -> Array:
    """Flatten a pytree to one array whose last axis holds the scalars."""
    leaves = [
        jnp.reshape(leaf, (*jnp.shape(leaf)[:num_batch_axes], -1))
        for leaf in jax.tree.leaves(theta)
    ]
    return jnp.concatenate(leaves, axis=-1)


def _stem(path: tuple) -> str:
    stem = ""
    for entry in path:
        if isinstance(entry, jax.tree_util.SequenceKey):
            stem = f"{stem or 'theta'}[{entry.idx}]"
        else:
            is_field = isinstance(entry, jax.tree_util.GetAttrKey)
            label = entry.name if is_field else entry.key
            stem = f"{stem}.{label}" if stem else str(label)
    return stem or "theta"
