"""Checkpoints of a training run, written by orbax to a folder."""

import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sbijax.base import Array, Estimator, Params, PyTree, Simulations
from sbijax.checks import describe

__all__ = ["Checkpoint", "fingerprint", "open_checkpoint"]

FORMAT = 2


class Checkpoint:
    """A folder with the latest training state; a context manager.

    Holds open file handles and threads of orbax, which is why it is the one
    object with a life of its own in this package.
    """

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]):
        self._identity = identity
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        try:
            self._manager = ocp.CheckpointManager(folder, options=options)
        except Exception as error:
            raise _damaged(folder, error) from error

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.close()

    def save(self, state: PyTree, step: int) -> None:
        """Write a state; a step that is already there is left as it is."""
        if self._manager.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_leaves(state)),
                identity=ocp.args.JsonSave(self._identity),
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, like: PyTree) -> PyTree | None:
        """The latest state in the structure of `like`, or None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        identity = self._read(step, identity=ocp.args.JsonRestore())
        if not isinstance(identity, dict):
            raise _damaged(self._manager.directory, TypeError("no identity"))
        _check_identity(identity, self._identity, self._manager.directory)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _leaves(like)
        )
        stored = self._read(step, state=ocp.args.StandardRestore(target))
        leaves, structure = jax.tree.flatten(like)
        rebuilt = [
            _wrap(jnp.asarray(stored[_name(i)]), leaf) for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, rebuilt)

    def _read(self, step: int, **item: Any) -> Any:
        """One item of a checkpoint, or one clear error for every kind of damage."""
        (name,) = item
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**item))[name]
        except Exception as error:
            raise _damaged(self._manager.directory, error) from error


def _damaged(folder: Any, error: Exception) -> ValueError:
    return ValueError(
        f"the checkpoint in {folder} is damaged ({type(error).__name__}: {error}). "
        "Use another folder, or delete this one to start again."
    )


def open_checkpoint(
    path: str | os.PathLike[str], identity: dict[str, Any]
) -> Checkpoint:
    """Open or make the folder of a run.

    Raises:
        NotADirectoryError: `path` is a file.
    """
    folder = pathlib.Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"checkpoint must be a folder, but {folder} is a file."
        )
    return Checkpoint(folder, identity)


def fingerprint(
    state: Any,
    sims: Simulations,
    estimator: Estimator,
    config: Any,
    reading: list[int] | None = None,
) -> dict[str, Any]:
    """What a run must share with a checkpoint to continue it.

    Of simulations larger than memory, `sims` is the sample that is read first, and
    `reading` their number, the rows of a buffer and those held out.

    The initial state is determined by key, simulations and estimator to the
    last bit; the loss it has on a few rows tells activations and priors apart
    that start from equal weights.
    """
    net = state.net.tree()
    shapes = [
        f"{jax.tree_util.keystr(path)} {describe(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state._replace(net=net))
    ]
    few = jax.tree.map(lambda leaf: leaf[:64], sims)
    assert estimator.loss is not None  # train refuses training-free methods
    # Output layers that start at zero hide the layers before them.
    moved = Params(jax.tree.map(lambda p: p + 0.1, net), state.stats)
    loss = jax.jit(estimator.loss)(moved, jax.random.key(0), few)
    functions = ("optimizer", "source")
    settings = {k: v for k, v in config._asdict().items() if k not in functions}
    update = None
    if config.optimizer is not None:
        ones = jax.tree.map(jnp.ones_like, net)
        update = _digest(config.optimizer.update(ones, state.opt_state, net)[0])
    source = None
    if config.source is not None:
        few = config.source.simulate(jax.random.key(0), 4)
        source = [config.source.steps_per_epoch, _digest(few)]
    return {
        "format": FORMAT,
        "config": settings,
        "shapes": shapes,
        "simulations": _digest(sims),
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
        "rates": [float(state.learning_rate), float(state.weight_decay)],
        "estimator": [_digest((state.net, state.stats)), f"{float(loss):.6g}"],
        "optimizer": update,
        "source": source,
        "reading": reading,
    }


def _digest(tree: PyTree) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _check_identity(
    found: dict[str, Any], expected: dict[str, Any], folder: Any
) -> None:
    mend = "Use another folder, or delete this one to start again."
    if found.get("format") != FORMAT:
        raise ValueError(
            f"the checkpoint in {folder} has format {found.get('format')}, this "
            f"version reads {FORMAT}. {mend}"
        )
    reasons = {
        "config": "another training configuration",
        "reading": "another number of simulations or another buffer_size",
        "shapes": "another estimator",
        "simulations": "other simulations",
        "key": "another key",
        "rates": "another learning_rate or weight_decay",
        "estimator": "another estimator of the same shapes",
        "optimizer": "another optimizer",
        "source": "another prior or simulator",
    }
    for field, reason in reasons.items():
        if found.get(field) != expected[field]:
            detail = _difference(found.get(field), expected[field])
            raise ValueError(
                f"the checkpoint in {folder} was made with {reason}{detail}. {mend}"
            )


def _difference(found: Any, expected: Any) -> str:
    if isinstance(expected, list) and isinstance(found, list) and expected:
        if not str(expected[0]).startswith("."):
            return f": {found} there, {expected} here"
        for a, b in zip(found, expected, strict=False):
            if a != b:
                return f": it holds {a}, expected {b}"
        return f": it holds {len(found)} arrays, expected {len(expected)}"
    if isinstance(expected, dict) and isinstance(found, dict):
        changed = [k for k in expected if found.get(k) != expected[k]]
        pairs = ", ".join(
            f"{k}={found.get(k)} there, {expected[k]} here" for k in changed
        )
        return f": {pairs}"
    return ""


def _leaves(tree: PyTree) -> dict[str, Array]:
    """A flat dict of plain arrays; orbax knows no typed keys."""
    flat = jax.tree.leaves(tree)
    return {
        _name(i): jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for i, leaf in enumerate(flat)
    }


def _name(i: int) -> str:
    return f"leaf_{i:04d}"


def _is_key(leaf: Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wrap(stored: Array, like: Array) -> Array:
    if _is_key(like):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(like))
    return stored
