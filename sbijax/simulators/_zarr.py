"""Arrays in a folder, in zarr format 3: chunks of raw bytes along axis 0.

The part of the format that is used is small enough to write by hand, which leaves
nothing open about what is on disk when the process is killed: a file is written
beside its place, synchronised and moved there, so that it is there whole or not at
all.  Any reader of zarr opens the folder.

Reference: Zarr core specification, version 3 (https://zarr-specs.readthedocs.io).
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ZarrArray",
    "open_array",
    "read_json",
    "read_rows",
    "write_array",
    "write_chunk",
    "write_json",
]

METADATA = "zarr.json"


class ZarrArray(NamedTuple):
    """An array `[N, ...]` of floats in a folder, NaN where there is no chunk yet."""

    folder: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_size: int


def write_array(array: ZarrArray) -> None:
    """Write the metadata of an array; its chunks stay as they are."""
    array.folder.mkdir(exist_ok=True)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": _chunk_shape(array)},
        },
        "chunk_key_encoding": {
            "name": "default",
            "configuration": {"separator": "."},
        },
        "fill_value": "NaN",
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    write_json(array.folder / METADATA, metadata)


def open_array(folder: pathlib.Path) -> ZarrArray:
    """Read the metadata of an array that `write_array` has written."""
    metadata = read_json(folder / METADATA)
    chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(metadata["data_type"])
    array = ZarrArray(folder, tuple(metadata["shape"]), dtype, chunk_shape[0])
    if chunk_shape != _chunk_shape(array) or len(metadata["codecs"]) != 1:
        raise ValueError(f"{folder.name} is compressed or cut in another way")
    return array


def write_chunk(array: ZarrArray, number: int, rows: np.ndarray) -> None:
    """Write one chunk `[chunk_size, ...]`, whole or not at all."""
    data = np.ascontiguousarray(rows, array.dtype.newbyteorder("<"))
    _write_file(_chunk_path(array, number), data.data.cast("B") if data.size else b"")


def read_rows(array: ZarrArray, start: int, stop: int) -> np.ndarray:
    """Rows `[stop - start, ...]`; only the chunks they are in are touched."""
    out = np.full((stop - start, *array.shape[1:]), np.nan, array.dtype)
    for number, first, last in chunk_cuts(array.chunk_size, start, stop):
        offset = number * array.chunk_size
        rows = _map_chunk(array, number)
        if rows is not None:
            out[first - start : last - start] = rows[first - offset : last - offset]
    return out


def chunk_cuts(size: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Chunks that rows `start` to `stop` are in: number, first and last row.

    Example:
        >>> list(chunk_cuts(10, 5, 21))
        [(0, 5, 10), (1, 10, 20), (2, 20, 21)]
    """
    for number in range(start // size, -(-stop // size)):
        yield number, max(start, number * size), min(stop, (number + 1) * size)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    _write_file(path, json.dumps(content, indent=1).encode())


def read_json(path: pathlib.Path) -> Any:
    """Read a file of JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def _chunk_shape(array: ZarrArray) -> list[int]:
    return [array.chunk_size, *(max(1, n) for n in array.shape[1:])]


def _chunk_path(array: ZarrArray, number: int) -> pathlib.Path:
    return array.folder / ".".join(["c", str(number)] + ["0"] * (len(array.shape) - 1))


def _map_chunk(array: ZarrArray, number: int) -> np.ndarray | None:
    """The rows of a chunk, read from disk as they are used; None if there is none."""
    path = _chunk_path(array, number)
    shape = (array.chunk_size, *array.shape[1:])
    expected = math.prod(shape) * array.dtype.itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if size != expected:
        raise ValueError(f"{path.name} has {size} bytes, expected {expected}")
    if not size:
        return None
    return np.memmap(path, array.dtype.newbyteorder("<"), "r", shape=shape)


def _synchronise(folder: pathlib.Path) -> None:
    """Make names in a folder last, where the system lets folders be opened."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_file(path: pathlib.Path, data: Any) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _synchronise(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
