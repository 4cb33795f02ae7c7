"""What the folder of a store says about itself, and errors about folders."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sbijax.base import Simulations
from sbijax.data import from_skeleton, to_skeleton
from sbijax.simulators._lock import LOCK
from sbijax.simulators._zarr import (
    create_array,
    get_chunk_size,
    open_array,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from tensorstore import TensorStore

__all__ = [
    "FORMAT",
    "MANIFEST",
    "MEND",
    "create_arrays",
    "is_ours",
    "open_arrays",
    "read_manifest",
    "reading",
    "writing",
]

FORMAT = 1
MANIFEST = "zarr.json"  # of the group: any reader of zarr opens the folder
MEND = "Give another folder, or delete this one to start again."


def is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder is empty, or has what a store begins with."""
    found = {path.name for path in folder.iterdir()}
    return not found or bool(found & {LOCK, MANIFEST})


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What `create_arrays` has written about a store."""
    with reading(folder):
        manifest = read_json(folder / MANIFEST)["attributes"]["sbijax"]
        found = manifest["format"]
        if type(found) is not int:
            raise ValueError("the format is not a number")
    if found > FORMAT:
        raise ValueError(
            f"{folder} has format {found}; this version reads up to {FORMAT}. Upgrade "
            "sbijax."
        )
    return manifest


def open_arrays(
    folder: pathlib.Path, manifest: dict[str, Any]
) -> tuple[Simulations, list["TensorStore"]]:
    """The arrays, weights last, and simulations of 0 rows that look like them."""
    with reading(folder):
        example = from_skeleton(manifest["example"])
        like = jax.tree.map(
            lambda a: np.zeros((0, *a.shape), a.dtype), Simulations(**example)
        )
        arrays = [open_array(folder / name) for name in manifest["arrays"]]
        num_rows, chunk_size = arrays[-1].shape[0], get_chunk_size(arrays[-1])
        pairs = zip(arrays, jax.tree.leaves(like), strict=True)
        for name, (array, leaf) in zip(manifest["arrays"], pairs, strict=True):
            if array.shape[1:] != leaf.shape[1:] or array.dtype.name != leaf.dtype.name:
                raise ValueError(f"{name} has another shape or dtype")
            if array.shape[0] < num_rows or get_chunk_size(array) != chunk_size:
                raise ValueError(f"{name} has other rows")
    return like, arrays


def create_arrays(
    folder: pathlib.Path,
    identity: dict[str, Any],
    example: Simulations,
    size: int,
    chunk_size: int,
) -> list["TensorStore"]:
    """Lay out a store of `size` draws like this one; the manifest is written last."""
    names, leaves = _names(example), jax.tree.leaves(example)
    manifest = {
        "format": FORMAT,
        "identity": identity,
        "arrays": names,
        "example": to_skeleton(example),
    }
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"sbijax": manifest},
    }
    with writing(folder):
        arrays = [
            create_array(folder / name, (size, *leaf.shape), leaf.dtype, chunk_size)
            for name, leaf in zip(names, leaves, strict=True)
        ]
        write_json(folder / MANIFEST, group)
    return arrays


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """One clear error for every kind of damage."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition(" [tensorstore_spec=")[0]
        raise ValueError(
            f"{folder} is damaged or is not a folder written by simulate "
            f"({type(error).__name__}: {reason}). {MEND}"
        ) from error


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """An `OSError` for what the system refuses, which tensorstore has as text only."""
    try:
        yield
    except Exception as error:
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(
            code,
            f"the store {folder} cannot be written to ({os.strerror(code)}). "
            "The draws that are in it are complete: make room, or lift what is "
            "in the way, and the same call goes on from there",
        ) from error


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
