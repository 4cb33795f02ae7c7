"""Discrete and continuous leaves of x, told apart."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, PyTree
from sbijax.checks import check_count, describe

__all__ = ["Kinds", "make_kinds"]


class Kinds(NamedTuple):
    """How x divides.

    `split(x)` gives the lists of its discrete and of its continuous leaves,
    `merge(discrete, continuous, like)` puts them back into the structure of
    `like`, `sizes(x)` lists the number of values of every discrete entry, and
    `is_possible(x)` tells whether all discrete entries have one of them.
    """

    split: Callable[[PyTree], tuple[list, list]]
    merge: Callable[[list, list, PyTree], PyTree]
    sizes: Callable[[PyTree], list[int]]
    is_possible: Callable[[PyTree], Array]


def make_kinds(num_categories: PyTree | None) -> Kinds:
    """Read `num_categories`: values per leaf, 0 for continuous ones, None for all."""
    counts = [
        check_count(size, "num_categories", least=0)
        for size in jax.tree.leaves(num_categories)
    ]

    def kinds(x: PyTree) -> list[int]:
        if num_categories is None:
            return [0] * len(jax.tree.leaves(x))
        if jax.tree.structure(x) != jax.tree.structure(num_categories):
            raise ValueError(
                "num_categories must have one number for each leaf of x: got "
                f"{num_categories!r} for x {describe(x)}."
            )
        return counts

    def split(x: PyTree) -> tuple[list, list]:
        pairs = list(zip(jax.tree.leaves(x), kinds(x), strict=True))
        return [a for a, size in pairs if size], [a for a, size in pairs if not size]

    def merge(discrete: list, continuous: list, like: PyTree) -> PyTree:
        sources = {True: iter(discrete), False: iter(continuous)}
        leaves = [next(sources[size > 0]) for size in kinds(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def sizes(x: PyTree) -> list[int]:
        pairs = zip(jax.tree.leaves(x), kinds(x), strict=True)
        return [size for leaf, size in pairs if size for _ in range(leaf.size)]

    def is_possible(x: PyTree) -> Array:
        possible = jnp.array(True)
        for leaf, size in zip(jax.tree.leaves(x), kinds(x), strict=True):
            whole = (leaf == jnp.round(leaf)) & (leaf >= 0) & (leaf < size)
            possible &= jnp.all(whole) if size else True
        return possible

    return Kinds(split, merge, sizes, is_possible)
