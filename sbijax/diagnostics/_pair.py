"""Two samples to compare: the checks that all two-sample tests share."""

import jax
import numpy as np
import numpy.typing as npt

from sbijax.base import PyTree
from sbijax.checks import describe

__all__ = ["NUM_FOLDS", "check_pair", "to_rows"]

NUM_FOLDS = 5


def check_pair(reference: PyTree, draws: PyTree) -> None:
    """Raise a `ValueError` unless a classifier can be cross-validated on the pair.

    Of traced samples only shapes and structure are known, and checked.

    Example:
        >>> import numpy as np
        >>> check_pair(np.arange(10.0)[:, None], np.zeros((10, 1)))
    """
    _check_rows(reference, "reference")
    _check_rows(draws, "draws")
    _check_alike(reference, draws)
    if not _is_traced(reference):
        _check_spread(to_rows(reference))


def to_rows(sample: PyTree) -> npt.NDArray[np.float64]:
    """Leaves `[S, ...]` as one matrix `[S, D]` in double precision."""
    leaves = [np.asarray(leaf, dtype=np.float64) for leaf in jax.tree.leaves(sample)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _check_rows(sample: PyTree, name: str) -> None:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(sample)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"{name} must be [S, D] or a pytree with leaves [S, ...] of one length "
            f"S, got {describe(sample)}."
        )
    num_rows = sizes.pop()
    if not _is_traced(sample):
        num_bad = int(np.sum(~np.isfinite(to_rows(sample)).all(axis=1)))
        if num_bad:
            raise ValueError(
                f"{name} holds non-finite values in {num_bad} of {num_rows} draws."
            )
    if num_rows is None or num_rows < NUM_FOLDS:
        raise ValueError(
            f"{name} holds {num_rows} draws, at least {NUM_FOLDS} are needed."
        )


def _check_alike(reference: PyTree, draws: PyTree) -> None:
    is_array = isinstance(reference, np.ndarray | jax.Array) or isinstance(
        draws, np.ndarray | jax.Array
    )
    same = is_array or jax.tree.structure(reference) == jax.tree.structure(draws)
    if _num_dims(reference) != _num_dims(draws) or not same:
        raise ValueError(
            "reference and draws must hold the same parameters, got "
            f"{describe(reference)} and {describe(draws)}."
        )


def _check_spread(rows: npt.NDArray[np.float64]) -> None:
    spread = rows.std(axis=0, ddof=1)
    if not np.all(spread > 0):
        columns = ", ".join(map(str, np.flatnonzero(spread == 0)))
        raise ValueError(
            f"reference has no spread in column {columns}, so its draws cannot be "
            "standardised. Leave constant parameters out of both samples."
        )


def _num_dims(sample: PyTree) -> int:
    return sum(int(np.prod(np.shape(leaf)[1:])) for leaf in jax.tree.leaves(sample))


def _is_traced(sample: PyTree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(sample))
