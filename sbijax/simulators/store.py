"""A folder of simulations, which outlives the process that draws them.

Each leaf of theta and x and the weights are arrays of zarr.  A chunk of draws is
written leaf by leaf and its weights last; draws without a weight (NaN there) are not
done.  So at whatever moment the process is killed, what has a weight is complete.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import PyTree, Simulations
from sbijax.checks import describe
from sbijax.data import to_skeleton
from sbijax.simulators._identity import check_identity
from sbijax.simulators._lock import hold_lock
from sbijax.simulators._manifest import (
    MANIFEST,
    MEND,
    create_arrays,
    is_ours,
    open_arrays,
    read_manifest,
    reading,
    writing,
)
from sbijax.simulators._sink import Rows, automatic_chunk_size, copy_rows
from sbijax.simulators._zarr import (
    chunk_cuts,
    get_chunk_size,
    read_rows,
    remove_leftovers,
    resize,
    write_rows,
)

if TYPE_CHECKING:
    from tensorstore import TensorStore

__all__ = ["FolderSink", "StoredSimulations", "open_simulations", "open_sink"]

# Chunks that are not full are written too, but neither often nor all the time.
_SECONDS_PER_FLUSH = 0.25
_SHARE_OF_FLUSH = 0.05


class StoredSimulations:
    """Simulations in a folder, read as they are asked for.

    `stored[a:b]` are `Simulations` of the finished draws a to b, and of them only
    what was sliced is in memory; `load()` reads all of them.  `len(stored)` is their
    number when the folder was opened.

    Args:
        path: the folder.
        size: how many draws to look at, finished or not; None for all.

    Example:
        See `open_simulations`.
    """

    def __init__(self, path: pathlib.Path, size: int | None = None):
        self.path = path
        self._like, self._arrays = open_arrays(path, read_manifest(path))
        num_rows = self._arrays[-1].shape[0]
        with reading(path):
            (weight,) = read_rows(self._arrays[-1:], 0, num_rows)
        self._rows = np.flatnonzero(~np.isnan(weight[:size]))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"StoredSimulations({len(self)} draws in {self.path})"

    def __getitem__(self, rows: slice) -> Simulations:
        if not isinstance(rows, slice):
            raise TypeError(
                f"rows of stored simulations are a slice like [0:1000], got {rows!r}."
            )
        wanted = self._rows[rows]
        if not len(wanted):
            return jax.tree.map(
                lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype), self._like
            )
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        with reading(self.path):
            leaves = read_rows(self._arrays, start, stop)
        if len(wanted) < stop - start or rows.step not in (None, 1):
            leaves = [leaf[wanted - start] for leaf in leaves]
        sims = jax.tree.unflatten(jax.tree.structure(self._like), leaves)
        return jax.tree.map(jnp.asarray, sims)

    def load(self) -> Simulations:
        """All finished draws, in memory."""
        return self[:]


def open_simulations(path: str | os.PathLike[str]) -> StoredSimulations:
    """Open the folder that `simulate(..., store=path)` has written, or is writing.

    Nothing but the weights is read until rows are asked for, so the folder may be
    larger than memory.

    Args:
        path: the folder.

    Returns:
        The draws that are finished, `StoredSimulations`.

    Raises:
        FileNotFoundError: there is no such folder, or nothing is finished in it.
        ValueError: the folder is damaged, of a later format, or something else.

    Example:
        >>> import jax, pathlib, tempfile, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key, (3,))
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "sims"
        >>> sims = sj.simulate(jax.random.key(0), prior, simulator, 100, store=folder)
        >>> stored = sj.open_simulations(folder)
        >>> len(stored), stored[10:20].x.shape
        (100, (10, 3))
        >>> bool((stored.load().x == sims.x).all())
        True
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of simulations.")
    if is_ours(folder) and not (folder / MANIFEST).exists():
        raise FileNotFoundError(f"no simulation in {folder} is finished yet.")
    return StoredSimulations(folder)


class FolderSink:
    """Writes draws to the folder, chunk by chunk; see `open_sink`.

    Args:
        folder: the folder, locked.
        identity: what a run must share with the folder to continue it.
        size: `N`.
        chunk_size: rows of a chunk, None for the folder's own.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        identity: dict[str, Any],
        size: int,
        chunk_size: int | None,
    ):
        self.folder = folder
        self.done = np.zeros(size, bool)
        self.chunk_size = chunk_size
        self.like: Simulations | None = None
        self._identity = identity
        self._arrays: list[TensorStore] = []
        self._chunks: dict[int, list[np.ndarray]] = {}
        self._changed: set[int] = set()
        self._last_flush, self._flush_seconds = time.monotonic(), 0.0
        if (folder / MANIFEST).exists():
            self._resume(chunk_size)

    def _resume(self, chunk_size: int | None) -> None:
        manifest = read_manifest(self.folder)
        check_identity(manifest["identity"], self._identity, self.folder)
        self.like, self._arrays = open_arrays(self.folder, manifest)
        self.chunk_size = get_chunk_size(self._arrays[-1])
        if chunk_size not in (None, self.chunk_size):
            raise ValueError(
                f"the store {self.folder} has chunks of {self.chunk_size} draws, "
                f"chunk_size={chunk_size} was given. Leave chunk_size out."
            )
        size = len(self.done)
        if self._arrays[-1].shape[0] < size:
            with writing(self.folder):  # weights last: they say how many there are
                self._arrays = [resize(array, size) for array in self._arrays]
        with reading(self.folder):
            (weight,) = read_rows(self._arrays[-1:], 0, size)
        self.done = ~np.isnan(weight)

    @property
    def x_like(self) -> PyTree | None:
        """One x of zeros; None before the folder has any."""
        if self.like is None:
            return None
        return jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), self.like.x)

    def create(self, like: Simulations, chunk_size: int) -> None:
        """Lay out the folder for draws that look like these, leaves `[n, ...]`."""
        example = jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), like)
        if self.like is not None:
            if to_skeleton(example.x) != to_skeleton(self.x_like):
                raise ValueError(
                    f"the store {self.folder} was made with another simulator: its x "
                    f"is {describe(self.x_like)}, that of this one "
                    f"{describe(example.x)}. {MEND}"
                )
            return
        self.chunk_size, size = chunk_size, len(self.done)
        self.like = jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), example)
        self._arrays = create_arrays(
            self.folder, self._identity, example, size, chunk_size
        )

    def write(self, rows: Rows) -> None:
        """Take finished draws; full chunks are written to the folder at once."""
        if not self._arrays:
            self.create(rows.sims, self.chunk_size or automatic_chunk_size(rows.sims))
        assert self.chunk_size is not None
        stop = min(len(self.done), rows.start + len(rows.sims.weight))
        for number, first, last in chunk_cuts(self.chunk_size, rows.start, stop):
            part = jax.tree.map(
                lambda a, i=first - rows.start: a[i:], jax.tree.leaves(rows.sims)
            )
            offset = number * self.chunk_size
            copy_rows(self._chunk(number), part, slice(first - offset, last - offset))
            self.done[first:last] = True
            self._changed.add(number)
            if self.done[offset : offset + self.chunk_size].all():
                self._save(number)
                del self._chunks[number]
        seconds = time.monotonic() - self._last_flush
        if (
            seconds > _SECONDS_PER_FLUSH
            and self._flush_seconds < _SHARE_OF_FLUSH * seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write the chunks that are not full, too."""
        start = time.monotonic()
        for number in sorted(self._changed):
            self._save(number)
        self._last_flush = time.monotonic()
        self._flush_seconds = self._last_flush - start

    def result(self) -> Simulations:
        """The draws that are done, in order, read from the folder."""
        with reading(self.folder):
            leaves = read_rows(self._arrays, 0, len(self.done))
        if not self.done.all():
            leaves = [leaf[self.done] for leaf in leaves]
        return jax.tree.unflatten(jax.tree.structure(self.like), leaves)

    def count_failed(self) -> int:
        """How many of the draws that are done have weight 0, chunk by chunk."""
        assert self.chunk_size is not None
        size, count = len(self.done), 0
        with reading(self.folder):
            for start in range(0, size, self.chunk_size):
                stop = min(size, start + self.chunk_size)
                (weight,) = read_rows(self._arrays[-1:], start, stop)
                count += int(np.sum(weight == 0.0))
        return count

    def _chunk(self, number: int) -> list[np.ndarray]:
        """Buffers of a chunk, with what the folder has of it."""
        if number not in self._chunks:
            assert self.chunk_size is not None
            start = number * self.chunk_size
            stop = min(start + self.chunk_size, self._arrays[-1].shape[0])
            with reading(self.folder):
                self._chunks[number] = read_rows(self._arrays, start, stop)
        return self._chunks[number]

    def _save(self, number: int) -> None:
        assert self.chunk_size is not None
        with writing(self.folder):
            for array, rows in zip(self._arrays, self._chunks[number], strict=True):
                write_rows(array, number * self.chunk_size, rows)
        self._changed.discard(number)


@contextlib.contextmanager
def open_sink(
    path: str | os.PathLike[str],
    identity: dict[str, Any],
    size: int,
    chunk_size: int | None,
) -> Iterator[FolderSink]:
    """Open or make the folder of a run, for this process alone.

    Raises:
        NotADirectoryError: `path` is a file.
        OSError: the folder cannot be written to.
        RuntimeError: another process writes to it.
        ValueError: the folder is of another run, damaged, or holds something else.
    """
    folder = pathlib.Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"store must be a folder, but {folder} is a file.")
    if folder.exists() and not is_ours(folder):
        raise ValueError(
            f"the folder {folder} holds something other than simulations. Give an "
            "empty or a new folder as the store."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(folder)
        stack = contextlib.ExitStack()
        stack.enter_context(lock)
        remove_leftovers(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the store {folder} cannot be written to ({error.strerror}). Give a "
            "folder that can be",
        ) from error
    with stack:
        yield FolderSink(folder, identity, size, chunk_size)
