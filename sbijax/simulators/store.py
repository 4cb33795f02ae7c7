"""A folder of simulations, which outlives the process that draws them.

Each leaf of theta and x and the weights are arrays of zarr.  A chunk of draws is
written leaf by leaf and its weights last; draws without a weight (NaN there) are not
done.  So at whatever moment the process is killed, what has a weight is complete.
"""

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import PyTree, Simulations
from sbijax.checks import describe
from sbijax.data import from_skeleton, to_skeleton
from sbijax.simulators._lock import LOCK, hold_lock
from sbijax.simulators._sink import Rows, automatic_chunk_size, copy_rows
from sbijax.simulators._zarr import (
    ZarrArray,
    chunk_cuts,
    open_array,
    read_json,
    read_rows,
    write_array,
    write_chunk,
    write_json,
)

__all__ = ["FolderSink", "StoredSimulations", "open_simulations", "open_sink"]

FORMAT = 1
_MANIFEST = "zarr.json"  # of the group: any reader of zarr opens the folder
# Chunks that are not full are written too, but neither often nor all the time.
_SECONDS_PER_FLUSH = 0.25
_SHARE_OF_FLUSH = 0.05
_MEND = "Give another folder, or delete this one to start again."


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
        self._like, self._arrays = _open_arrays(path, _read_manifest(path))
        weights = self._arrays[-1]
        with _reading(path):
            done = ~np.isnan(read_rows(weights, 0, weights.shape[0]))[:size]
        self._rows = np.flatnonzero(done)

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
        with _reading(self.path):
            leaves = [read_rows(array, start, stop) for array in self._arrays]
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
    if _is_ours(folder) and not (folder / _MANIFEST).exists():
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
        self._arrays: list[ZarrArray] = []
        self._chunks: dict[int, list[np.ndarray]] = {}
        self._changed: set[int] = set()
        self._last_flush, self._flush_seconds = time.monotonic(), 0.0
        if (folder / _MANIFEST).exists():
            self._resume(chunk_size)

    def _resume(self, chunk_size: int | None) -> None:
        manifest = _read_manifest(self.folder)
        check_identity(manifest["identity"], self._identity, self.folder)
        self.like, self._arrays = _open_arrays(self.folder, manifest)
        weights = self._arrays[-1]
        self.chunk_size = weights.chunk_size
        if chunk_size not in (None, self.chunk_size):
            raise ValueError(
                f"the store {self.folder} has chunks of {self.chunk_size} draws, "
                f"chunk_size={chunk_size} was given. Leave chunk_size out."
            )
        size = len(self.done)
        if weights.shape[0] < size:  # the weights last: they say how many there are
            self._arrays = [
                a._replace(shape=(size, *a.shape[1:])) for a in self._arrays
            ]
            with self._writing():
                for array in self._arrays:
                    write_array(array)
        with _reading(self.folder):
            self.done = ~np.isnan(read_rows(self._arrays[-1], 0, size))

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
                    f"{describe(example.x)}. {_MEND}"
                )
            return
        self.chunk_size, size = chunk_size, len(self.done)
        self.like = jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), example)
        names = _names(example)
        self._arrays = [
            ZarrArray(self.folder / name, (size, *a.shape), a.dtype, chunk_size)
            for name, a in zip(names, jax.tree.leaves(example), strict=True)
        ]
        manifest = {
            "format": FORMAT,
            "identity": self._identity,
            "arrays": names,
            "example": to_skeleton(example),
        }
        with self._writing():
            for array in self._arrays:
                write_array(array)
            write_json(
                self.folder / _MANIFEST,
                {
                    "zarr_format": 3,
                    "node_type": "group",
                    "attributes": {"sbijax": manifest},
                },
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
        with _reading(self.folder):
            leaves = [read_rows(array, 0, len(self.done)) for array in self._arrays]
        if not self.done.all():
            leaves = [leaf[self.done] for leaf in leaves]
        return jax.tree.unflatten(jax.tree.structure(self.like), leaves)

    def count_failed(self) -> int:
        """How many of the draws that are done have weight 0, chunk by chunk."""
        assert self.chunk_size is not None
        weights, size, count = self._arrays[-1], len(self.done), 0
        with _reading(self.folder):
            for start in range(0, size, self.chunk_size):
                stop = min(size, start + self.chunk_size)
                count += int(np.sum(read_rows(weights, start, stop) == 0.0))
        return count

    def _chunk(self, number: int) -> list[np.ndarray]:
        """Buffers of a chunk, with what the folder has of it."""
        if number not in self._chunks:
            assert self.chunk_size is not None
            start = number * self.chunk_size
            with _reading(self.folder):
                self._chunks[number] = [
                    read_rows(array, start, start + self.chunk_size)
                    for array in self._arrays
                ]
        return self._chunks[number]

    def _save(self, number: int) -> None:
        with self._writing():
            for array, rows in zip(self._arrays, self._chunks[number], strict=True):
                write_chunk(array, number, rows)
        self._changed.discard(number)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"the store {self.folder} cannot be written to ({error.strerror}). "
                "The draws that are in it are complete: make room, or lift what is "
                "in the way, and the same call goes on from there",
            ) from error


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
    if folder.exists() and not _is_ours(folder):
        raise ValueError(
            f"the folder {folder} holds something other than simulations. Give an "
            "empty or a new folder as the store."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(folder)
        stack = contextlib.ExitStack()
        stack.enter_context(lock)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the store {folder} cannot be written to ({error.strerror}). Give a "
            "folder that can be",
        ) from error
    with stack:
        yield FolderSink(folder, identity, size, chunk_size)


def check_identity(
    found: dict[str, Any], expected: dict[str, Any], folder: pathlib.Path
) -> None:
    """Refuse to continue the draws of another run."""
    reasons = {
        "key": "another key",
        "theta": "another prior",
        "prior": "another prior",
        "simulator": "another simulator",
        "program": "a simulator of the same name but another program",
    }
    for field, reason in reasons.items():
        ours, theirs = expected[field], found.get(field)
        if field == "prior":
            same = np.allclose(theirs or np.nan, ours, 1e-4, 1e-6, equal_nan=True)
        elif field == "program" and theirs and ours:
            # Another version of Python or JAX may compile the same to something else.
            same = theirs[0] != ours[0] or theirs[1] == ours[1]
        else:
            same = theirs == ours
        if not same:
            detail = ""
            if field in ("key", "simulator"):
                detail = f" ({_flat(theirs)} there, {_flat(ours)} here)"
            elif field == "theta":
                there, here = from_skeleton(theirs), from_skeleton(ours)
                detail = f" (theta is {describe(there)} there, {describe(here)} here)"
            raise ValueError(
                f"the store {folder} was made with {reason}{detail}. {_MEND}"
            )


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)
    return str(value)


def _names(example: Simulations) -> list[str]:
    """Names of the arrays, such as `theta.loc`, that any file system takes."""
    names: list[str] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(example):
        parts = re.findall(r"[A-Za-z0-9_-]+", jax.tree_util.keystr(path))
        name = ".".join(parts)
        # File systems may not tell upper from lower case.
        taken = {other.lower() for other in names}
        names.append(name if name.lower() not in taken else f"{name}.{len(names)}")
    return names


def _is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder is empty, or has what a store begins with."""
    found = {path.name for path in folder.iterdir()}
    return not found or bool(found & {LOCK, _MANIFEST})


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    with _reading(folder):
        manifest = read_json(folder / _MANIFEST)["attributes"]["sbijax"]
        found = manifest["format"]
        if type(found) is not int:
            raise ValueError("the format is not a number")
    if found > FORMAT:
        raise ValueError(
            f"{folder} has format {found}; this version reads up to {FORMAT}. Upgrade "
            "sbijax."
        )
    return manifest


def _open_arrays(
    folder: pathlib.Path, manifest: dict[str, Any]
) -> tuple[Simulations, list[ZarrArray]]:
    """The arrays, weights last, and simulations of 0 rows that look like them."""
    with _reading(folder):
        example = from_skeleton(manifest["example"])
        like = jax.tree.map(
            lambda a: np.zeros((0, *a.shape), a.dtype), Simulations(**example)
        )
        arrays = [open_array(folder / name) for name in manifest["arrays"]]
        num_rows = arrays[-1].shape[0]
        for array, leaf in zip(arrays, jax.tree.leaves(like), strict=True):
            if array.shape[1:] != leaf.shape[1:] or array.dtype != leaf.dtype:
                raise ValueError(f"{array.folder.name} has another shape or dtype")
            if array.shape[0] < num_rows or array.chunk_size != arrays[-1].chunk_size:
                raise ValueError(f"{array.folder.name} has other rows")
    return like, arrays


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """One clear error for every kind of damage."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{folder} is damaged or is not a folder written by simulate "
            f"({type(error).__name__}: {error}). {_MEND}"
        ) from error
