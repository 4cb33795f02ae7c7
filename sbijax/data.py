"""Making simulations and sets of trials, and what there is to do with their rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array, PyTree, Simulations, Trials
from sbijax.checks import check_count, check_like, describe, is_real

__all__ = [
    "check_trials",
    "clear_hidden",
    "count_invalid",
    "data_nodes",
    "fill_zero_weight",
    "flatten",
    "from_skeleton",
    "holds_trials",
    "is_trials",
    "make_simulations",
    "make_trials",
    "to_skeleton",
    "where_rows",
]


def make_simulations(
    theta: PyTree, x: PyTree, weight: Array | None = None
) -> Simulations:
    """Build `Simulations` from arrays of any kind, with failed rows at weight 0.

    Args:
        theta: pytree with leaves `[N, ...]`, JAX or numpy arrays, or a list.
        x: pytree with leaves `[N, ...]`, likewise.
        weight: `[N]`, non-negative; by default 1 for every row.

    Returns:
        The simulations in the default floating dtype; rows with a non-finite
        theta or x have weight 0.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: no rows, lengths that differ, weights that are negative.

    Example:
        >>> import numpy as np
        >>> from sbijax import make_simulations
        >>> sims = make_simulations(np.zeros(3), np.array([[1.0], [np.nan], [2.0]]))
        >>> sims.weight.tolist()
        [1.0, 0.0, 1.0]
    """
    theta, x = _to_arrays(theta, "theta"), _to_arrays(x, "x")
    x = clear_hidden(x, batched=True)
    weights = None if weight is None else _to_arrays(weight, "weight")
    size = _num_rows(
        {"theta": theta, "x": x, "weight": weights},
        "theta, x and weight must have one row per simulation, the same number in each",
    )
    if size == 0:
        raise ValueError("there are no simulations: every array has 0 rows.")
    if weights is None:
        weights = jnp.ones(size)
    if jnp.shape(weights) != (size,):
        raise ValueError(f"weight must have shape ({size},), got {describe(weights)}.")
    if not isinstance(weights, jax.core.Tracer):
        seen = np.asarray(weights)
        if not np.all((seen >= 0) & np.isfinite(seen)):
            raise ValueError("weight must be finite and not negative in every row.")
    return Simulations(theta, x, _clear(weights, (theta, x)))


@jax.jit
def _clear(weights: Array, data: PyTree) -> Array:
    """Weight 0 for rows that are not finite."""
    valid = jnp.ones(weights.shape, bool)
    for leaf in jax.tree.leaves(data):
        valid &= jnp.all(jnp.isfinite(leaf).reshape(weights.size, -1), axis=1)
    return jnp.where(valid, weights, 0.0)


def make_trials(x: PyTree, *, num_padded: int | None = None) -> Trials:
    """Wrap repeated observations of one theta, padded to a fixed number.

    Args:
        x: pytree with leaves `[T, ...]`, JAX or numpy arrays, or a list.
        num_padded: length to pad to, at least T; with one length for all data
            sets nothing is compiled again.  By default T.

    Returns:
        The trials, with padding of zeros that the mask hides.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: no trials, unequal numbers of them, or more than
            `num_padded`.

    Example:
        >>> import numpy as np
        >>> from sbijax.data import make_trials
        >>> make_trials(np.ones((3, 2)), num_padded=5).mask.tolist()
        [True, True, True, False, False]
    """
    x = _to_arrays(x, "x")
    size = _num_rows(
        {"x": x}, "every leaf of x must have one row per trial, the same number in each"
    )
    if not size:
        raise ValueError("there are no trials: every array has 0 rows.")
    length = size if num_padded is None else check_count(num_padded, "num_padded")
    if length < size:
        raise ValueError(
            f"there are {size} trials, more than num_padded={length}. Raise it to "
            "the largest number of trials of any data set."
        )

    def pad(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, length - size)] + [(0, 0)] * (leaf.ndim - 1))

    return Trials(jax.tree.map(pad, x), jnp.arange(length) < size)


def check_trials(trials: Trials, example: PyTree) -> Trials:
    """Convert trials to the dtypes of one x, with `example` where the mask hides.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: structure or shapes differ from `example`, or the mask has
            another length or hides everything.
    """
    _num_rows(
        {"x": trials.x, "mask": trials.mask},
        "trials must have one row per trial and one entry of the mask for each",
        " Make them with make_trials(x).",
    )
    check_like(jax.tree.map(lambda leaf: leaf[0], trials.x), example, "one trial")
    mask = jnp.asarray(trials.mask) > 0
    if not isinstance(mask, jax.core.Tracer) and not bool(jnp.any(mask)):
        raise ValueError(
            f"the mask hides all {mask.size} trials; at least one has to count."
        )

    def convert(leaf: Array, default: Array) -> Array:
        return where_rows(mask, jnp.asarray(leaf, default.dtype), default)

    return Trials(jax.tree.map(convert, trials.x, example), mask)


def fill_zero_weight(batch: Simulations, example: Simulations) -> Simulations:
    """Replace rows of weight 0 by `example`, so that NaN there reaches nothing."""
    fill = partial(where_rows, batch.weight > 0)
    theta = jax.tree.map(fill, batch.theta, example.theta)
    x = jax.tree.map(fill, batch.x, example.x)
    return Simulations(theta, x, batch.weight)


def where_rows(keep: Array, leaf: Array, other: Array | float) -> Array:
    """Rows of a leaf `[N, ...]` where `keep` `[N]` is positive, `other` elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.data import where_rows
        >>> where_rows(jnp.array([1, 0]), jnp.ones((2, 3)), -1.0).sum(axis=1).tolist()
        [3.0, -3.0]
    """
    return jnp.where(keep.reshape((-1,) + (1,) * (leaf.ndim - 1)) > 0, leaf, other)


def data_nodes(x: PyTree) -> list:
    """The leaves of x, of which each `Trials` is one.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.data import data_nodes, make_trials
        >>> len(data_nodes({"number": jnp.zeros(2), "set": make_trials([1.0])}))
        2
    """
    return jax.tree.leaves(x, is_leaf=is_trials)


def flatten(x: PyTree) -> Array:
    """All leaves of one x in one vector.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.data import flatten
        >>> flatten({"a": 1.0, "b": jnp.array([[2.0, 3.0]])}).tolist()
        [1.0, 2.0, 3.0]
    """
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def holds_trials(x: PyTree) -> bool:
    """Whether any part of x is a `Trials`.

    Example:
        >>> from sbijax.data import holds_trials, make_trials
        >>> holds_trials({"set": make_trials([1.0])})
        True
    """
    return any(map(is_trials, data_nodes(x)))


def is_trials(node: PyTree) -> bool:
    """Whether x, or a part of it, is a `Trials`.

    Example:
        >>> from sbijax.data import is_trials, make_trials
        >>> is_trials(make_trials([1.0]))
        True
    """
    return isinstance(node, Trials)


def clear_hidden(x: PyTree, *, batched: bool = False) -> PyTree:
    """Zeros in the rows of `Trials` that the mask hides.

    Args:
        x: one x, or a batch of them.
        batched: whether the leaves have an axis of simulations.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.base import Trials
        >>> from sbijax.data import clear_hidden
        >>> x = Trials(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
        >>> clear_hidden(x).x.tolist()
        [1.0, 0.0]
    """

    def clear(node: PyTree) -> PyTree:
        if not is_trials(node):
            return node
        one = partial(where_rows, other=0.0)
        rows = jax.vmap(one) if batched else one
        return Trials(jax.tree.map(lambda a: rows(node.mask, a), node.x), node.mask)

    return jax.tree.map(clear, x, is_leaf=is_trials)


def count_invalid(draws: Array) -> Array:
    """How many rows of draws `[S, D]` are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.data import count_invalid
        >>> int(count_invalid(jnp.array([[0.0, 1.0], [jnp.nan, 1.0]])))
        1
    """
    return jnp.sum(~jnp.all(jnp.isfinite(draws), axis=-1))


def to_skeleton(tree: PyTree) -> Any:
    """A pytree of dicts, tuples, lists, Trials and arrays as JSON, without values.

    Example:
        >>> import numpy as np
        >>> from sbijax.data import to_skeleton
        >>> to_skeleton((np.zeros(3, np.float32),))
        {'tuple': [{'shape': [3], 'dtype': 'float32'}]}
    """
    if isinstance(tree, Simulations):
        tree = tree._asdict()
    if is_trials(tree):
        return {"trials": to_skeleton(tree._asdict())}
    if type(tree) is dict and all(isinstance(name, str) for name in tree):
        return {"dict": {name: to_skeleton(value) for name, value in tree.items()}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [to_skeleton(value) for value in tree]}
    if isinstance(tree, jax.Array | np.ndarray):
        return {"shape": list(tree.shape), "dtype": str(tree.dtype)}
    raise TypeError(
        "a file holds theta and x made of dicts, tuples, lists, Trials and arrays, "
        f"got a {type(tree).__name__} among them. Turn it into a dict in the simulator."
    )


def from_skeleton(node: Any) -> Any:
    """The pytree that `to_skeleton` was given, with shapes and dtypes for arrays."""
    if "trials" in node:
        return Trials(**from_skeleton(node["trials"]))
    if "dict" in node:
        return {name: from_skeleton(value) for name, value in node["dict"].items()}
    if "tuple" in node:
        return tuple(from_skeleton(value) for value in node["tuple"])
    if "list" in node:
        return [from_skeleton(value) for value in node["list"]]
    return jax.ShapeDtypeStruct(tuple(node["shape"]), jnp.dtype(node["dtype"]))


def _num_rows(trees: dict[str, PyTree], rule: str, mend: str = "") -> int:
    """Length of axis 0 of all leaves, or a `ValueError` that names those they have."""
    sizes = {
        f"{name}{jax.tree_util.keystr(path)}": leaf.shape[0] if leaf.ndim else None
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    size, *others = set(sizes.values())
    if others or size is None:
        listing = ", ".join(f"{k}: {v}" for k, v in sizes.items())
        raise ValueError(f"{rule}; got rows {listing}.{mend}")
    return size


def _to_arrays(tree: PyTree, name: str) -> PyTree:
    """Leaves as arrays of the default floating dtype; a list counts as an array."""
    if isinstance(tree, list):
        tree = np.asarray(tree)
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} holds no arrays: got {tree!r}.")

    def convert(leaf: Any) -> Array:
        if not is_real(leaf):
            raise TypeError(f"{name} must hold real numbers, got {describe(leaf)}.")
        with np.errstate(over="ignore"):  # too large is infinite: a failed row
            return jnp.asarray(leaf, jnp.result_type(float))

    return jax.tree.map(convert, tree)
