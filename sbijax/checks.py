"""Checks of input: what was given, what was expected and how to mend it."""

import inspect
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "check_count",
    "check_finite",
    "check_flow_sampler",
    "check_fraction",
    "check_key",
    "check_like",
    "check_network",
    "check_positive",
    "check_record",
    "check_sampler",
    "describe",
    "is_real",
    "is_score_sampler",
]

PyTree = Any


def check_count(value: Any, name: str, *, least: int = 1) -> int:
    """Return `value` as an int, or raise unless it is a whole number >= `least`.

    Example:
        >>> from sbijax.checks import check_count
        >>> check_count(3, "num_samples")
        3
    """
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from error
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}.")
    return count


def check_fraction(value: Any, name: str) -> float:
    """Return `value` as a float, or raise unless it lies strictly within 0 and 1.

    Example:
        >>> from sbijax.checks import check_fraction
        >>> check_fraction(0.5, "target_ess")
        0.5
    """
    if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number between 0 and 1, got {value!r}.")
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
    return float(value)


def check_positive(value: Any, name: str) -> float:
    """Return `value` as a float, or raise unless it is a positive, finite number.

    Example:
        >>> from sbijax.checks import check_positive
        >>> check_positive(1e-3, "tolerance")
        0.001
    """
    if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a positive number, got {value!r}.")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def check_key(key: jax.Array, name: str = "key") -> None:
    """Raise a `TypeError` unless `key` is one typed PRNG key.

    Example:
        >>> import jax
        >>> from sbijax.checks import check_key
        >>> check_key(jax.random.key(0))
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        given = repr(key) if np.ndim(key) == 0 else f"an array {describe(key)}"
        raise TypeError(
            f"{name} must be a typed PRNG key, got {given}. Make one with "
            "jax.random.key(seed), or wrap a legacy key with "
            "jax.random.wrap_key_data(key)."
        )
    if key.ndim:
        raise TypeError(
            f"{name} must be one PRNG key, got a batch of shape {key.shape}. "
            "Pass one key, or jax.vmap the call over the batch."
        )


def check_record(value: Any, record: type, name: str, mend: str) -> None:
    """Raise a `TypeError` unless `value` is a `record`, or one that widens it.

    A widened record is a NamedTuple with the same first fields.

    Example:
        >>> from sbijax.base import Network
        >>> from sbijax.checks import check_record
        >>> network = Network(init=print, apply=print)
        >>> check_record(network, Network, "network", "Make one with mlp().")
    """
    fields: tuple[str, ...] = getattr(record, "_fields", ())
    given = () if isinstance(value, type) else getattr(value, "_fields", ())
    if given[: len(fields)] != fields:
        raise TypeError(
            f"{name} must be of type {record.__name__}, got {_kind(value)}. {mend}"
        )


def check_network(value: Any, name: str) -> None:
    """Raise a `TypeError` unless `value` has the two functions of a `Network`.

    A flax.linen module has them.

    Example:
        >>> import flax.linen as nn
        >>> from sbijax.checks import check_network
        >>> check_network(nn.Dense(3), "embedding")
    """
    functions = getattr(value, "init", None), getattr(value, "apply", None)
    if isinstance(value, type) or not all(map(callable, functions)):
        raise TypeError(
            f"{name} must be a network, got {_kind(value)}. Give Network(init, apply), "
            "a flax.linen module, or networks.from_nnx of an NNX module."
        )


def check_sampler(value: Any) -> None:
    """Raise a `TypeError` unless `value` can be called as a `Sampler`.

    Example:
        >>> from sbijax.checks import check_sampler
        >>> from sbijax.samplers import nuts
        >>> check_sampler(nuts())
    """
    if not {"target", "num_samples"} <= _parameters(value):
        raise TypeError(
            f"sampler must be a sampler, got {_kind(value)}. Give the result of a "
            "factory such as samplers.tempered_smc() or samplers.nuts()."
        )


def check_flow_sampler(value: Any) -> None:
    """Raise a `TypeError` unless `value` can be called as a `FlowSampler`.

    Example:
        >>> from sbijax.checks import check_flow_sampler
        >>> from sbijax.samplers import ode
        >>> check_flow_sampler(ode())
    """
    if not {"field", "shape"} <= _parameters(value):
        raise TypeError(
            f"sampler must draw along a field, got {_kind(value)}. Give the result of "
            "samplers.ode() or samplers.sde()."
        )


def is_score_sampler(value: Any) -> bool:
    """Whether `value` can be called as a `ScoreSampler`.

    Example:
        >>> from sbijax.checks import is_score_sampler
        >>> from sbijax.samplers import annealed_langevin
        >>> is_score_sampler(annealed_langevin())
        True
    """
    return {"score", "prior_score", "num_trials"} <= _parameters(value)


def is_real(leaf: Any) -> bool:
    """Whether a leaf holds real numbers: floating, whole or truth values.

    Example:
        >>> from sbijax.checks import is_real
        >>> is_real(1.0), is_real(1j), is_real("one")
        (True, False, False)
    """
    dtype = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
    return any(jnp.issubdtype(dtype, k) for k in (jnp.floating, jnp.integer, bool))


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree as short text, such as `{a: float32[3]}`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.checks import describe
        >>> describe({"a": jnp.zeros(3)})
        '{a: float32[3]}'
    """
    if tree is None:
        return "None"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(describe(v) for v in tree) + ")"
    dtype = getattr(tree, "dtype", None) or np.asarray(tree).dtype
    return f"{dtype}[{','.join(map(str, np.shape(tree)))}]"


def check_like(value: PyTree, example: PyTree, name: str) -> PyTree:
    """Convert `value` to arrays shaped like `example`, or say what differs.

    numpy arrays, float64 and Python numbers are converted to the dtype of
    `example`.

    Args:
        value: pytree to check, one example without a batch axis.
        example: pytree with the structure and shapes that are expected.
        name: what to call `value` in the message.

    Returns:
        `value` with the leaves of `example`'s dtypes.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: structure or shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.checks import check_like
        >>> check_like(1.0, jnp.zeros(()), "x").dtype
        dtype('float32')
    """
    if isinstance(value, list) and not isinstance(example, list):
        value = np.asarray(value)
    expected = f"expected {describe(example)} as in the simulations"
    if jax.tree.structure(value) != jax.tree.structure(example):
        raise ValueError(
            f"{name} has another structure than the simulations: got "
            f"{describe(value)}, {expected}."
        )
    leaves, examples = jax.tree.leaves(value), jax.tree.leaves(example)
    if any(np.shape(a) != np.shape(b) for a, b in zip(leaves, examples, strict=True)):
        batched = all(
            np.shape(a)[1:] == np.shape(b) and np.ndim(a) == np.ndim(b) + 1
            for a, b in zip(leaves, examples, strict=True)
        )
        mend = (
            " It looks like a batch: jax.vmap over the first axis, or make_trials "
            "for repeated trials of one theta."
            if batched
            else ""
        )
        raise ValueError(
            f"{name} has another shape than the simulations: got "
            f"{describe(value)}, {expected}.{mend}"
        )
    if not all(map(is_real, leaves)):
        raise TypeError(f"{name} must hold real numbers, got {describe(value)}.")
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), value, example)


def check_finite(value: PyTree, name: str, example: PyTree = None) -> None:
    """Raise a `ValueError` if a concrete `value` holds NaN or infinities.

    Where an entry of `example` is NaN, that of `value` may be missing, which is NaN
    as well.  Traced values pass: inside `jit` and `vmap` a fault is data.
    """
    examples = jax.tree.leaves(example)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(value)):
        like = examples[i] if i < len(examples) else 0.0
        if isinstance(leaf, jax.core.Tracer) or isinstance(like, jax.core.Tracer):
            continue
        numbers = np.asarray(leaf, dtype=float)
        missing = np.isnan(numbers) & np.isnan(np.asarray(like, dtype=float))
        bad = int(np.sum(~np.isfinite(numbers) & ~missing))
        if bad:
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}{where} holds {bad} non-finite value(s) of "
                f"{np.size(leaf)}. Replace or leave out the missing entries "
                "in the observation and in the simulations alike, or train with "
                "with_missing."
            )


def _parameters(value: Any) -> set[str]:
    """Names of the parameters of what can be called, none of what cannot."""
    return set(inspect.signature(value).parameters) if callable(value) else set()


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isfunction(value):
        return f"the function {value.__name__}; it may have to be called"
    return type(value).__name__
