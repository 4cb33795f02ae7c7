"""What a call of `simulate` must share with a store to continue it."""

import functools
import hashlib
import pathlib
import platform
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sbijax.base import Array, Prior
from sbijax.checks import describe
from sbijax.data import from_skeleton, to_skeleton
from sbijax.simulators._manifest import MEND
from sbijax.simulators._pieces import draw_thetas
from sbijax.simulators.python import PythonSimulator

__all__ = ["check_identity", "identify"]

_NUM_PROBES = 8


def identify(
    key: Array, prior: Prior, simulator: Callable[..., Any] | PythonSimulator
) -> dict[str, Any]:
    """Key, prior and simulator as JSON.

    The prior is known by the first theta it draws.  A JAX simulator is known by its
    program, another by its bytecode: what that calls is not looked into, and neither
    is compared between versions of JAX or Python.
    """
    theta = jax.device_get(draw_thetas(key, 0, prior=prior, size=_NUM_PROBES))
    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), theta)
    probes = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(theta)])
    function: Callable[..., Any] = simulator  # type: ignore[assignment]
    if is_python := isinstance(simulator, PythonSimulator):
        function = simulator.function
        program = _bytecode_digest(function)
    else:
        program = _program_digest(function, key, one)
    return {
        "key": {
            "impl": str(jax.random.key_impl(key)),
            "data": np.asarray(jax.random.key_data(key)).tolist(),
        },
        "theta": to_skeleton(one),
        "prior": probes.astype(float).tolist(),
        "simulator": {
            "name": getattr(function, "__qualname__", type(function).__qualname__),
            "kind": "Python" if is_python else "JAX",
            "batch_size": getattr(simulator, "batch_size", None),
        },
        "program": program,
    }


def _program_digest(simulator: Callable[..., Any], key: Array, theta: Any) -> list[str]:
    """Version and digest of the traced program; constants count by their values."""
    program = jax.make_jaxpr(lambda key, theta: simulator(key, theta))(key, theta)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
    for constant in program.consts:
        if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
            constant = jax.random.key_data(constant)
        digest.update(np.ascontiguousarray(constant).tobytes())
    return [f"jax {jax.__version__}", digest.hexdigest()]


def _bytecode_digest(function: Callable[..., Any]) -> list[str] | None:
    """Version and digest of a Python function; None where there is no bytecode."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(type(function).__call__, "__code__", None)
    if code is None:
        return None
    digest = hashlib.sha256()
    _add_code(digest, code)
    version = ".".join(platform.python_version_tuple()[:2])
    return [f"python {version}", digest.hexdigest()]


def _add_code(digest: Any, code: types.CodeType) -> None:
    """Take up what the code does, without its name, its place and its comments."""
    digest.update(code.co_code)
    digest.update(" ".join((*code.co_names, *code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant)
        elif isinstance(constant, frozenset):  # its order differs between processes
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())


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
                f"the store {folder} was made with {reason}{detail}. {MEND}"
            )


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)
    return str(value)
