"""Where finished draws go, and what is said about them on the way."""

import collections
import contextlib
import math
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import numpy as np

from sbijax.base import PyTree, SbijaxWarning, Simulations

__all__ = [
    "Failures",
    "MemorySink",
    "Rows",
    "Sink",
    "automatic_chunk_size",
    "copy_rows",
    "fill",
    "report_failures",
]

_PROGRESS_DELAY = 1.0  # seconds; shorter runs show no bar
_MAX_REASONS = 5
_CHUNK_BYTES = 64 * 2**20
_MAX_CHUNK_SIZE = 4096  # larger chunks are not faster and show no progress


class Rows(NamedTuple):
    """Finished draws `start`, `start + 1`, ... as numpy arrays `[n, ...]`."""

    start: int
    sims: Simulations


class Failures:
    """Counts of the messages of failed draws, with the first draw of each."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, int] = {}

    def add(self, message: str, index: int, count: int = 1) -> None:
        """Count draws from `index` on that failed for the same reason."""
        self.counts[message] += count
        self.first[message] = min(index, self.first.get(message, sys.maxsize))

    def __str__(self) -> str:
        """The most frequent messages, most frequent first."""
        order = sorted(self.counts, key=lambda m: (-self.counts[m], self.first[m]))
        parts = [
            f"{m} ({self.counts[m]}, the first is draw {self.first[m]})"
            for m in order[:_MAX_REASONS]
        ]
        others = sum(self.counts[message] for message in order[_MAX_REASONS:])
        if others:
            parts.append(f"other errors ({others})")
        return "; ".join(parts)


class Sink(Protocol):
    """Takes finished draws in any order; `done` `[N]` says which it has.

    `chunk_size` is that of a store that has draws, and `x_like` one x of zeros as it
    has them; None otherwise.
    """

    done: np.ndarray
    chunk_size: int | None

    @property
    def x_like(self) -> PyTree | None:
        """One x of zeros, if there are draws of an earlier run."""
        ...

    def create(self, like: Simulations, chunk_size: int) -> None:
        """Make room for draws that look like these, leaves `[n, ...]`."""
        ...

    def write(self, rows: Rows) -> None:
        """Take finished draws; those beyond `N` are dropped."""
        ...

    def flush(self) -> None:
        """Bring what was written to where it lasts."""
        ...

    def result(self) -> Simulations:
        """The draws that are done, in order, as numpy arrays."""
        ...

    def count_failed(self) -> int:
        """How many of the draws that are done have weight 0."""
        ...


class MemorySink:
    """Keeps `N` draws in arrays."""

    def __init__(self, size: int):
        self.done = np.zeros(size, bool)
        self.chunk_size: int | None = None
        self.x_like = None
        self._buffers: Simulations | None = None

    def create(self, like: Simulations, chunk_size: int) -> None:
        """Make room for draws that look like these, leaves `[n, ...]`."""
        self.chunk_size, size = chunk_size, len(self.done)
        self._buffers = jax.tree.map(
            lambda a: np.empty((size, *a.shape[1:]), a.dtype), like
        )

    def write(self, rows: Rows) -> None:
        """Take finished draws; those beyond `N` are dropped."""
        if self._buffers is None:
            self.create(rows.sims, 1)
        cut = slice(rows.start, min(len(self.done), rows.start + len(rows.sims.weight)))
        copy_rows(self._buffers, rows.sims, cut)
        self.done[cut] = True

    def flush(self) -> None:
        """Nothing lasts."""

    def result(self) -> Simulations:
        """The draws that are done, in order."""
        assert self._buffers is not None
        if self.done.all():
            return self._buffers
        return jax.tree.map(lambda buffer: buffer[self.done], self._buffers)

    def count_failed(self) -> int:
        """How many of the draws that are done have weight 0."""
        assert self._buffers is not None
        return int(np.sum(self._buffers.weight[self.done] == 0.0))


def copy_rows(buffers: PyTree, rows: PyTree, cut: slice) -> None:
    """Copy the first rows into a range of larger arrays."""
    for buffer, leaf in zip(
        jax.tree.leaves(buffers), jax.tree.leaves(rows), strict=True
    ):
        buffer[cut] = leaf[: cut.stop - cut.start]


def automatic_chunk_size(like: Simulations) -> int:
    """Draws of about 64 MB, given some with leaves `[n, ...]`."""
    row_bytes = sum(
        math.prod(a.shape[1:]) * a.dtype.itemsize for a in jax.tree.leaves(like)
    )
    return max(1, min(_MAX_CHUNK_SIZE, _CHUNK_BYTES // row_bytes))


def fill(sink: Sink, pieces: Iterator[Rows], progress: bool) -> None:
    """Write all pieces; Ctrl-C ends this early if there are any finished draws."""
    from tqdm import tqdm

    num_failed, size = 0, len(sink.done)
    with (
        contextlib.closing(pieces),  # type: ignore[type-var]
        tqdm(
            total=size,
            initial=int(sink.done.sum()),
            desc="simulate",
            unit="draw",
            unit_scale=True,
            delay=_PROGRESS_DELAY,
            disable=not progress,
        ) as bar,
    ):
        try:
            for rows in pieces:
                cut = slice(rows.start, min(size, rows.start + len(rows.sims.weight)))
                new = ~sink.done[cut]
                num_failed += int(np.sum(rows.sims.weight[: len(new)][new] == 0.0))
                sink.write(rows)
                bar.set_postfix(failed=num_failed, refresh=False)
                bar.update(int(np.sum(new)))
        except KeyboardInterrupt:
            if not sink.done.any():
                raise
    if not sink.done.all():
        warnings.warn(
            f"simulate was interrupted: the {sink.done.sum()} of {size} simulations "
            "that were finished are returned.",
            SbijaxWarning,
            stacklevel=4,
        )


def report_failures(sink: Sink, failures: Failures) -> str | None:
    """One line about the failed draws, None if there are none."""
    count, size = sink.count_failed(), int(sink.done.sum())
    if count == 0:
        return None
    earlier = count - sum(failures.counts.values())
    reasons = str(failures) if failures.counts else "theta or x is not finite"
    if failures.counts and earlier > 0:
        reasons += f"; {earlier} were in the store already"
    if count == size:
        raise ValueError(
            f"all {size} simulations failed: {reasons}. Call the simulator once with "
            "theta = prior.sample(key) and look at what it returns."
        )
    return (
        f"{count} of {size} simulations ({100 * count / size:.2g} %) failed: "
        f"{reasons}. They have weight 0 and are left out. If that is more than "
        "you expect, look at theta where weight is 0."
    )
