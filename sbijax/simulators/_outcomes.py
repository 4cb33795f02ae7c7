"""What workers send back, as rows of simulations."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import PyTree, Simulations
from sbijax.checks import describe
from sbijax.data import clear_hidden, holds_trials
from sbijax.simulators._sink import Failures, Rows
from sbijax.worker import Block, Outcome, Piece

__all__ = ["OutcomeReader"]

_NOT_FINITE = "theta or x is not finite"
_MAX_STRANGERS = 10


class OutcomeReader:
    """Turns outcomes into rows.

    What x looks like is what the first draw that succeeds returns, first by number;
    until it is known, outcomes are held.  Where a store has draws, that is what it has,
    once a draw agrees; when none of the first ten does, it is another simulator.
    """

    def __init__(
        self,
        units: np.ndarray,
        size: int,
        x_like: PyTree | None,
        failures: Failures,
    ):
        self._units, self._size, self._failures = units, size, failures
        self._stored, self._like = x_like, None
        self._held: dict[int, tuple[Piece, Outcome]] = {}
        self._place, self._num_strangers = 0, 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one x, as far as they are known."""
        return 1 + sum(leaf.nbytes for leaf in jax.tree.leaves(self._like))

    def read(self, piece: Piece, outcome: Outcome) -> Iterator[Rows]:
        """Rows of this outcome, and of those that were held for it."""
        if self._like is not None:
            yield self._rows(piece, outcome)
            return
        self._held[piece.first] = piece, outcome
        while self._like is None and self._place < len(self._units):
            held = self._held.get(int(self._units[self._place]))
            if held is None:
                return
            self._place += held[0].num_units
            for block in sorted(held[1].blocks, key=lambda block: block.positions[0]):
                if self._like is None:
                    self._learn(block)
        if self._like is not None:
            yield from self.finish()

    def finish(self) -> Iterator[Rows]:
        """Rows of what was held; an error if nothing has succeeded."""
        if self._like is None and self._stored is not None:
            self._like = self._stored
        for piece, outcome in self._held.values():
            if self._like is not None:
                yield self._rows(piece, outcome)
            else:
                self._count(piece, outcome.failures)
        self._held.clear()
        if self._like is None and len(self._units):
            raise ValueError(
                f"all {self._size} simulations failed: {self._failures}. Call the "
                "function once with numpy.random.default_rng() and theta = "
                "prior.sample(key), and look at what it does."
            )

    def _learn(self, block: Block) -> None:
        dtype = jnp.result_type(float)
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], dtype), block.x)
        if self._stored is None or _look_alike(like, self._stored):
            self._like = like
            return
        self._num_strangers += len(block.positions)
        if self._num_strangers >= _MAX_STRANGERS:
            raise ValueError(
                "the store was made with another simulator: its x is "
                f"{describe(self._stored)}, that of this one {describe(like)}. Give "
                "another folder, or delete this one to start again."
            )

    def _rows(self, piece: Piece, outcome: Outcome) -> Rows:
        batch = piece.batch_size or 1
        num_rows = piece.num_units * batch
        x = jax.tree.map(
            lambda leaf: np.full((num_rows, *leaf.shape), np.nan, leaf.dtype),
            self._like,
        )
        failures = list(outcome.failures)
        for positions, found in outcome.blocks:
            found_like = jax.tree.map(lambda leaf: leaf[0], found)
            if not _look_alike(found_like, self._like):
                message = (
                    f"x was {describe(found_like)}, that of other draws "
                    f"{describe(self._like)}"
                )
                failures += [(i, message) for i in positions]
                continue
            rows = np.add.outer(np.multiply(positions, batch), np.arange(batch)).ravel()
            with np.errstate(over="ignore", invalid="ignore"):
                for a, b in zip(
                    jax.tree.leaves(x), jax.tree.leaves(found), strict=True
                ):
                    a[rows] = b
        if holds_trials(x):
            x = jax.tree.map(np.asarray, clear_hidden(x, batched=True))
        valid = np.ones(num_rows, bool)
        for leaf in jax.tree.leaves((piece.theta, x)):
            valid &= np.isfinite(leaf).reshape(num_rows, -1).all(axis=1)
        failed = self._count(piece, failures)
        start = piece.first * batch
        bad = start + np.flatnonzero(~valid & ~failed)
        bad = bad[bad < self._size]
        if len(bad):
            self._failures.add(_NOT_FINITE, int(bad[0]), len(bad))
        weight: Any = valid.astype(jnp.result_type(float))
        return Rows(start, Simulations(piece.theta, x, weight))

    def _count(self, piece: Piece, failures: list[tuple[int, str]]) -> np.ndarray:
        """Count failed units, and say which rows `[n]` they are."""
        batch = piece.batch_size or 1
        failed = np.zeros(piece.num_units * batch, bool)
        for i, message in failures:
            failed[i * batch : (i + 1) * batch] = True
            index = (piece.first + i) * batch
            # The last batch may reach beyond the end.
            self._failures.add(message, index, min(batch, self._size - index))
        return failed


def _look_alike(x: PyTree, like: PyTree) -> bool:
    return jax.tree.structure(x) == jax.tree.structure(like) and all(
        np.shape(a) == np.shape(b)
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(like), strict=True)
    )
