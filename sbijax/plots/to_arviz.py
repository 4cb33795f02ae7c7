"""Conversion of draws to ArviZ, for its tables, plots and files."""

from typing import Any

import jax
import numpy as np

from sbijax.base import PyTree
from sbijax.checks import describe
from sbijax.plots._arrays import flat_dict

__all__ = ["to_arviz"]


def to_arviz(
    draws: PyTree,
    *,
    num_chains: int | None = None,
    x_observed: PyTree | None = None,
    predictive: PyTree | None = None,
) -> Any:
    """Convert posterior draws to ArviZ.

    Leaves of a pytree become variables: `alpha`, `group.beta`; a bare array is
    called `theta`, or `x` where it is data.

    Args:
        draws: theta pytree with leaves `[S, ...]`, or `[C, S, ...]` with
            `num_chains`.
        num_chains: number of chains C on the leading axis; None for draws
            without such an axis, which become one chain.
        x_observed: the data, one x.
        predictive: predictive data sets with the axes of `draws` in front of
            those of x.

    Returns:
        `InferenceData` (ArviZ 0.x) or `DataTree` (ArviZ 1.x) with the group
        `posterior` and, where given, `posterior_predictive` and
        `observed_data`.

    Raises:
        ValueError: leaves whose leading axes differ or are not those chains.

    Example:
        >>> import numpy as np
        >>> data = to_arviz({"alpha": np.zeros((4, 100))}, num_chains=4)
        >>> data["posterior"]["alpha"].shape
        (4, 100)
    """
    import arviz

    shape = _leading_shape(draws, num_chains, "draws")
    groups = {"posterior": _named(draws, "theta", num_chains is None)}
    if predictive is not None:
        if _leading_shape(predictive, num_chains, "predictive") != shape:
            raise ValueError(
                "predictive must hold one data set for each of the draws, "
                f"{list(shape)}; got {describe(predictive)}."
            )
        groups["posterior_predictive"] = _named(predictive, "x", num_chains is None)
    if x_observed is not None:
        groups["observed_data"] = _named(x_observed, "x", add_axis=False)
    from_dict: Any = arviz.from_dict
    if int(arviz.__version__.split(".")[0]) < 1:
        return from_dict(**groups)
    return from_dict(groups)


def _named(tree: PyTree, bare: str, add_axis: bool) -> dict[str, np.ndarray]:
    named = {name: np.asarray(leaf) for name, leaf in flat_dict(tree, bare).items()}
    return {name: leaf[None] if add_axis else leaf for name, leaf in named.items()}


def _leading_shape(tree: PyTree, num_chains: int | None, name: str) -> tuple[int, ...]:
    num_axes = 1 if num_chains is None else 2
    shapes = {np.shape(leaf)[:num_axes] for leaf in jax.tree.leaves(tree)}
    shape: tuple[int, ...] = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) < num_axes or (num_chains is not None and shape[0] != num_chains):
        axes = "[S, ...]" if num_chains is None else f"[{num_chains}, S, ...]"
        raise ValueError(
            f"{name} must have leaves {axes} of the same S, got {describe(tree)}."
        )
    return shape
