"""Saving and loading trained parameters.

A file is a zip of plain arrays and one JSON manifest: no pickle, so loading
executes nothing.  The manifest holds shapes, dtypes, the format, and a check
value, the log-density of the stored example, by which `load` notices an
estimator that has the same shapes but another prior or architecture.
"""

import io
import json
import math
import os
import pathlib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Estimator, Params, PyTree, Simulations
from sbijax.checks import check_record, describe
from sbijax.data import from_skeleton, to_skeleton

__all__ = ["load", "save"]

FORMAT = 1
_MANIFEST = "manifest.json"
_CHECK_TOLERANCE = 1e-2


def save(path: str | os.PathLike[str], estimator: Estimator, params: Params) -> None:
    """Write trained parameters to one file.

    The file appears whole or not at all: it is written beside its place and
    moved there.

    Args:
        path: where to write; an existing file is replaced.
        estimator: the estimator that `params` belong to.
        params: trained parameters.

    Raises:
        TypeError: an argument is not of its kind, or theta or x have nodes other
            than dicts, tuples, lists, Trials and arrays.
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import jax, tempfile, pathlib, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> npe = sj.make_npe(sj.make_prior(dist.Normal(0.0, 1.0)))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "npe.sbijax"
        ...     sj.save(path, npe, params)
        ...     again = sj.load(path, npe)
        >>> bool(jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again)))
        True
    """
    order = "The order is save(path, estimator, params)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(params, Params, "params", order)
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to save into.")
    skeleton = to_skeleton(params.stats.example)
    leaves = {
        jax.tree_util.keystr(key_path): np.asarray(jnp.asarray(leaf))
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    manifest = {
        "format": FORMAT,
        "sbijax": _version(),
        "example": skeleton,
        "leaves": [
            {"name": name, "shape": leaf.shape, "dtype": str(leaf.dtype)}
            for name, leaf in leaves.items()
        ],
        "check": _check_value(estimator, params),
    }
    partial = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
            for i, leaf in enumerate(leaves.values()):
                buffer = io.BytesIO()
                np.save(buffer, _as_bytes(leaf), allow_pickle=False)
                archive.writestr(f"{i}.npy", buffer.getvalue())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], estimator: Estimator) -> Params:
    """Read parameters written by `save` into an estimator.

    Args:
        path: the file.
        estimator: an estimator built as the saved one was.

    Returns:
        The parameters, equal to the saved ones to the last bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of a later format, or was saved from
            another estimator.

    Example:
        See `save`.
    """
    manifest, arrays = _read_file(path)
    _check_format(path, manifest)
    expected = _expected(estimator, manifest["example"])
    _check_leaves(path, manifest["leaves"], expected)
    by_name = {
        entry["name"]: array
        for entry, array in zip(manifest["leaves"], arrays, strict=True)
    }
    params = jax.tree_util.tree_map_with_path(
        lambda key_path, _: jnp.asarray(by_name[jax.tree_util.keystr(key_path)]),
        expected,
    )
    _check_same_function(path, manifest["check"], _check_value(estimator, params))
    return params


def _expected(estimator: Estimator, skeleton: Any) -> PyTree:
    """Shapes of the parameters the estimator would make for such simulations."""
    example = from_skeleton(skeleton)
    sims = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype),
        Simulations(example["theta"], example["x"], example["weight"]),
    )
    try:
        return jax.eval_shape(estimator.init, jax.random.key(0), sims)
    except Exception as error:  # whatever the estimator's own parts raise
        raise ValueError(
            "the file was saved from another estimator: its simulations have theta "
            f"{describe(example['theta'])} and x {describe(example['x'])}, which "
            f"this estimator does not take ({error})"
        ) from error


def _check_leaves(path: Any, entries: list[dict[str, Any]], expected: PyTree) -> None:
    ours = {
        jax.tree_util.keystr(key_path): (list(leaf.shape), str(leaf.dtype))
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    theirs = {e["name"]: (list(e["shape"]), e["dtype"]) for e in entries}
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{path} was saved from another estimator: {name} is "
                f"{_say(theirs.get(name))} in the file and {_say(ours.get(name))} in "
                "the estimator it is loaded into. Build the estimator with the "
                "same settings as the saved one."
            )


def _say(entry: tuple[list[int], str] | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{entry[0]}"


def _check_same_function(path: Any, stored: float | None, found: float | None) -> None:
    if stored is None and found is None:
        return
    one, two = (math.inf if v is None else v for v in (stored, found))
    if not math.isclose(one, two, rel_tol=_CHECK_TOLERANCE, abs_tol=_CHECK_TOLERANCE):
        raise ValueError(
            f"{path} was saved from another estimator of the same shapes: the "
            f"log-density of the stored example was {stored} and is "
            f"{found} here. Build the estimator with the same prior, network "
            "and standardizer as the saved one."
        )


def _check_value(estimator: Estimator, params: Params) -> float | None:
    """Log-density of the stored example; None where there is no finite one."""
    if estimator.log_prob is None:
        return None
    example = params.stats.example
    value = float(jax.jit(estimator.log_prob)(params, example.theta, example.x))
    return value if math.isfinite(value) else None


def _check_format(path: Any, manifest: dict[str, Any]) -> None:
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']} (sbijax {manifest['sbijax']}); "
            f"this version reads up to {FORMAT}. Upgrade sbijax."
        )


def _read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Any]]:
    """Manifest and arrays, or one clear error for every kind of damage."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            if type(manifest["format"]) is not int:
                raise ValueError("the format is not a number")
            if manifest["format"] > FORMAT:
                return manifest, []
            _check_manifest(manifest)
            arrays = [
                _from_bytes(archive.read(f"{i}.npy"), entry)
                for i, entry in enumerate(manifest["leaves"])
            ]
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or is not a file written by sbijax.save "
            f"({type(error).__name__}: {error}). Save it again or restore a copy."
        ) from error
    return manifest, arrays


def _check_manifest(manifest: dict[str, Any]) -> None:
    example = from_skeleton(manifest["example"])
    if set(example) != set(Simulations._fields):
        raise ValueError("the example has other fields")
    check = manifest["check"]
    if check is not None and type(check) is not float:
        raise ValueError("the check value is not a number")
    if not all(isinstance(entry["name"], str) for entry in manifest["leaves"]):
        raise ValueError("a name is not text")


def _as_bytes(leaf: np.ndarray) -> np.ndarray:
    """Raw bytes, so that dtypes numpy does not know (bfloat16) survive."""
    return np.frombuffer(np.ascontiguousarray(leaf).tobytes(), np.uint8)


def _from_bytes(npy: bytes, entry: dict[str, Any]) -> np.ndarray:
    raw = np.load(io.BytesIO(npy), allow_pickle=False)
    if not isinstance(raw, np.ndarray) or raw.dtype != np.uint8:
        raise ValueError(f"{entry['name']} is not stored as bytes")
    dtype = jnp.dtype(entry["dtype"])
    return np.frombuffer(raw.tobytes(), dtype).reshape(entry["shape"])


def _version() -> str:
    try:
        return version("sbijax-functional")
    except PackageNotFoundError:
        return "unknown"
