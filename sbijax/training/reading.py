"""Which rows of a lazy source are read when, and reading them into a buffer.

The source is cut into pieces, runs of rows.  Some, chosen at random, are read
first: their rows are held out for validation, and the statistics are fitted on
them.  In every epoch the others are put in another order, which is cut into groups
of whole batches that fit into a buffer.
"""

import concurrent.futures
import itertools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import jax
import numpy as np

from sbijax.base import Array, LazySimulations, Simulations
from sbijax.checks import check_record, describe, is_real
from sbijax.data import make_simulations

__all__ = [
    "Plan",
    "automatic_buffer_size",
    "is_lazy",
    "make_buffer",
    "make_entropy",
    "make_plan",
    "read_into",
    "read_one",
    "read_slice",
]

_BUFFER_BYTES = 2**30
_PIECES_PER_BUFFER = 32
_ALIGNMENT = 64  # JAX takes arrays that begin at a multiple of it without a copy
# They have a length and slices as well.
_NOT_LAZY = (type, tuple, list, dict, np.ndarray, jax.Array)


class Plan(NamedTuple):
    """How the rows of a source are shared out; slices are `[n, 2]`, start and stop.

    The first `num_held_out` rows of `sample` are for validation, and `training` has
    all the others.  `cuts` `[G + 1]` says where the training rows of an epoch, laid
    end to end, are cut into groups.
    """

    entropy: tuple[int, ...]
    sample: np.ndarray
    training: np.ndarray
    num_held_out: int
    cuts: np.ndarray

    @property
    def capacity(self) -> int:
        """Rows of the largest group."""
        return int(np.diff(self.cuts).max())

    def groups(self, epoch: int) -> Iterator[np.ndarray]:
        """Slices of each group of an epoch, in the order in which they are stored."""
        order = _generator(self.entropy, 1 + epoch).permutation(self.training)
        for first, last in itertools.pairwise(self.cuts):
            slices = _cut(order, first, last)
            yield slices[np.argsort(slices[:, 0])]


def make_plan(
    entropy: tuple[int, ...],
    num_rows: int,
    *,
    buffer_size: int,
    validation_fraction: float,
    batch_size: int,
) -> Plan:
    """Share out the rows of a source larger than a buffer.

    Half a buffer at most is sampled, and held out.  All groups have about the same
    number of batches, and only the last one has a batch that is not full.

    Example:
        >>> from sbijax.training.reading import make_plan
        >>> plan = make_plan(
        ...     (0,), 1_000, buffer_size=280, validation_fraction=0.1, batch_size=50
        ... )
        >>> plan.num_held_out, plan.cuts.tolist(), plan.capacity
        (100, [0, 200, 450, 650, 900], 250)
    """
    size = max(1, buffer_size // _PIECES_PER_BUFFER)
    starts = np.arange(0, num_rows, size)
    pieces = np.stack([starts, np.minimum(starts + size, num_rows)], axis=1)
    pieces = _generator(entropy, 0).permutation(pieces)
    num_held_out = min(int(validation_fraction * num_rows), buffer_size // 2)
    num_train = num_rows - num_held_out
    num_batches = -(-num_train // batch_size)
    num_groups = -(-num_batches // (buffer_size // batch_size))
    cuts = np.arange(num_groups + 1) * num_batches // num_groups * batch_size
    return Plan(
        entropy=entropy,
        sample=_cut(pieces, 0, max(1, buffer_size // 2)),
        training=_cut(pieces, num_held_out, num_rows),
        num_held_out=num_held_out,
        cuts=np.minimum(cuts, num_train),
    )


def _generator(entropy: tuple[int, ...], number: int) -> np.random.Generator:
    return np.random.default_rng((*entropy, number))


def _cut(slices: np.ndarray, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` of slices laid end to end, as slices."""
    ends = np.cumsum(slices[:, 1] - slices[:, 0])
    i = np.searchsorted(ends, first, side="right")
    j = np.searchsorted(ends, last, side="left")
    cut = slices[i : j + 1].copy()
    cut[-1, 1] -= ends[j] - last
    cut[0, 0] = slices[i, 1] - (ends[i] - first)
    return cut


def is_lazy(sims: Any) -> TypeGuard[LazySimulations]:
    """Whether something looks like `LazySimulations`."""
    return isinstance(sims, LazySimulations) and not isinstance(sims, _NOT_LAZY)


def automatic_buffer_size(like: Simulations) -> int:
    """Rows of about 1 GB, given one."""
    return max(1, _BUFFER_BYTES // sum(leaf.nbytes for leaf in jax.tree.leaves(like)))


def read_one(source: LazySimulations) -> Simulations:
    """One row of zeros in the default floating dtype, leaves without axis 0.

    Raises:
        TypeError: a slice is not `Simulations`, or holds no real numbers.
        ValueError: the source is empty, or its slices are malformed.
    """
    if len(source) == 0:
        raise ValueError("there are no simulations: sims has 0 rows.")
    first = make_simulations(*read_slice(source, 0, 1))
    return jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), first)


def read_slice(source: LazySimulations, start: int, stop: int) -> Simulations:
    """Rows `start` to `stop` of a source, checked to be simulations."""
    part = source[start:stop]
    check_record(
        part,
        Simulations,
        f"sims[{start}:{stop}]",
        "Give Simulations, or a lazy source whose slices are, such as that of "
        "open_simulations.",
    )
    return Simulations(part.theta, part.x, part.weight)


def make_buffer(like: Simulations, capacity: int) -> Simulations:
    """Numpy arrays `[capacity, ...]` for rows that look like one."""
    return jax.tree.map(lambda a: _aligned((capacity, *a.shape), a.dtype), like)


def read_into(
    buffer: Simulations,
    source: LazySimulations,
    slices: np.ndarray,
    stop: threading.Event | None = None,
) -> Simulations:
    """Read slices into the arrays of a buffer; rows after the last have weight 0.

    Args:
        buffer: arrays `[capacity, ...]`, which are written to.
        source: where to read.
        slices: which rows, `capacity` at most.
        stop: when it is set, reading ends with a `CancelledError`.

    Raises:
        TypeError: a slice is not `Simulations`, or holds no real numbers.
        ValueError: a slice has other shapes, or weights that are negative.
    """
    place = 0
    for first, last in slices.tolist():
        if stop is not None and stop.is_set():
            raise concurrent.futures.CancelledError
        part = read_slice(source, first, last)
        _check_part(part, buffer, first, last)
        rows = slice(place, place + last - first)
        with np.errstate(over="ignore"):  # too large is infinite: a failed row
            for a, b in zip(
                jax.tree.leaves(buffer), jax.tree.leaves(part), strict=True
            ):
                a[rows] = b
        place = rows.stop
    np.asarray(buffer.weight)[place:] = 0.0
    return buffer


def _check_part(part: Simulations, buffer: Simulations, first: int, last: int) -> None:
    name = f"sims[{first}:{last}]"
    expected = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((last - first, *a.shape[1:]), a.dtype), buffer
    )
    if jax.tree.structure(part) != jax.tree.structure(buffer) or any(
        np.shape(a) != b.shape
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(expected), strict=True)
    ):
        raise ValueError(
            f"{name} has other shapes than sims[0:1]: got {_describe(part)}, expected "
            f"{_describe(expected)}. Every slice must have the same leaves, with as "
            "many rows as it asks for."
        )
    if not all(map(is_real, jax.tree.leaves(part))):
        raise TypeError(f"{name} must hold real numbers, got {_describe(part)}.")
    weight = np.asarray(part.weight)
    if not np.all((weight >= 0) & np.isfinite(weight)):
        raise ValueError(
            f"the weights of {name} must be finite and not negative in every row."
        )


def _describe(sims: Simulations) -> str:
    return describe(sims._asdict())


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX on a CPU can use where it is."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def make_entropy(key: Array) -> tuple[int, ...]:
    """A key as numbers that seed a generator of numpy."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return tuple(int(word) for word in words)
