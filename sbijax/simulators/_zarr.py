"""Arrays in a folder, in zarr format 3: chunks of raw bytes along axis 0.

tensorstore writes them: each file beside its place, synchronised and moved there, so
that it is there whole or not at all when the process is killed.  Any reader of zarr
opens the folder.

Reference: Zarr core specification, version 3 (https://zarr-specs.readthedocs.io).
"""

import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tensorstore import TensorStore

__all__ = [
    "chunk_cuts",
    "create_array",
    "get_chunk_size",
    "open_array",
    "read_json",
    "read_rows",
    "remove_leftovers",
    "resize",
    "write_json",
    "write_rows",
]

_PART_SIZE = 2**16  # numbers; larger chunks are cut into parts that are read alone
# One process writes to a folder.  With its locks, tensorstore writes over what a kill
# has left beside a file, and what that has more of than the new content stays.
_CONTEXT = {"file_io_locking": {"mode": "none"}}


def create_array(
    folder: pathlib.Path, shape: Sequence[int], dtype: np.dtype, chunk_size: int
) -> "TensorStore":
    """Make an array `[N, ...]` of floats, NaN where there is no chunk, in a folder.

    An array that is there is deleted.
    """
    import tensorstore as ts

    row = [max(1, n) for n in shape[1:]]
    part_size = next(
        n
        for n in range(1, chunk_size + 1)
        if n == chunk_size or (chunk_size % n == 0 and n * math.prod(row) >= _PART_SIZE)
    )
    separator = {"name": "default", "configuration": {"separator": "."}}
    return ts.open(
        _spec(folder) | {"metadata": {"chunk_key_encoding": separator}},
        create=True,
        delete_existing=True,
        shape=shape,
        dtype=dtype,
        fill_value=np.nan,
        chunk_layout=ts.ChunkLayout(
            write_chunk_shape=[chunk_size, *row], read_chunk_shape=[part_size, *row]
        ),
    ).result()


def open_array(folder: pathlib.Path) -> "TensorStore":
    """Open an array that `create_array` has made."""
    import tensorstore as ts

    return ts.open(_spec(folder)).result()


def get_chunk_size(array: "TensorStore") -> int:
    """Rows that are written together."""
    return array.chunk_layout.write_chunk_template.shape[0]


def resize(array: "TensorStore", size: int) -> "TensorStore":
    """The array with another number of rows."""
    return array.resize(exclusive_max=[size] + [None] * (array.rank - 1)).result()


def write_rows(array: "TensorStore", start: int, rows: np.ndarray) -> None:
    """Write all rows of a chunk, whole or not at all."""
    array[start : start + len(rows)].write(rows).result()


def read_rows(
    arrays: Sequence["TensorStore"], start: int, stop: int
) -> list[np.ndarray]:
    """Rows `[stop - start, ...]` of each array; little else is read."""
    import tensorstore as ts

    # Into memory of numpy: what tensorstore allocates, tracemalloc does not see.
    out = [
        np.empty((stop - start, *array.shape[1:]), array.dtype.numpy_dtype)
        for array in arrays
    ]
    pairs = zip(arrays, out, strict=True)
    futures = [ts.array(rows).write(array[start:stop]) for array, rows in pairs]
    for future in futures:
        future.result()
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
    import tensorstore as ts

    files = ts.KvStore.open(_files(path.parent)).result()
    files.write(path.name, json.dumps(content, indent=1)).result()


def read_json(path: pathlib.Path) -> Any:
    """Read a file of JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def remove_leftovers(folder: pathlib.Path) -> None:
    """Remove the files that a process was writing when it was killed."""
    for path in folder.glob("**/*.__lock"):
        path.unlink()


def _files(folder: pathlib.Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{folder}/", "context": _CONTEXT}


def _spec(folder: pathlib.Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": _files(folder)}
