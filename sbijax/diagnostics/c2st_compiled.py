"""The classifier two-sample test of `c2st` as one compiled function.

The same protocol, so the same expected value, from other random numbers:
weights, folds and batches are drawn from a JAX key.

Reference:
    Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", 2017.
    Lueckmann, Boelts, Greenberg, Gonçalves and Macke, "Benchmarking
    simulation-based inference", 2021.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sbijax.base import Array, PyTree
from sbijax.checks import check_count, check_key
from sbijax.diagnostics._mlp import Rows, fit, init, logits
from sbijax.diagnostics._names import to_matrix
from sbijax.diagnostics._pair import NUM_FOLDS, check_pair

__all__ = ["c2st_compiled"]


def c2st_compiled(
    key: Array, reference: PyTree, draws: PyTree, *, max_epochs: int = 10_000
) -> Array:
    """Cross-validated accuracy of a classifier between two samples, compiled.

    Takes the place of `c2st` inside `jax.jit` and `jax.vmap`, needs no
    scikit-learn, and is faster.  One pair takes single seconds on a CPU; for
    several pairs, `jax.lax.map` suits a CPU, where nothing is gained by waiting
    for the slowest pair, and `jax.vmap` an accelerator.

    Args:
        key: PRNG key, for the folds, the weights and the batches.
        reference: draws of the reference, an array `[S, D]` or a theta pytree
            with leaves `[S, ...]`.
        draws: draws to judge, of the same structure; their number may differ,
            but 0.5 is the perfect score only if it does not.
        max_epochs: epochs at most; the loss stalls long before the default.

    Returns:
        Accuracy between 0 and 1, a scalar; 0.5 is perfect.  NaN if traced
        samples hold non-finite values or a traced reference has no spread.

    Raises:
        TypeError: not a typed PRNG key.
        ValueError: what `c2st` refuses; values are seen only outside of `jit`
            and `vmap`.

    Example:
        >>> import jax
        >>> reference = jax.random.normal(jax.random.key(0), (100, 1))
        >>> float(c2st_compiled(jax.random.key(1), reference, reference + 100.0))
        1.0

    Reference:
        Lueckmann et al., "Benchmarking simulation-based inference", 2021.
    """
    check_key(key)
    max_epochs = check_count(max_epochs, "max_epochs")
    reference, draws = jax.tree.map(jnp.asarray, (reference, draws))
    check_pair(reference, draws)
    return _cross_validate(key, reference, draws, jnp.asarray(max_epochs))


@jax.jit
def _cross_validate(
    key: Array, reference: PyTree, draws: PyTree, max_epochs: Array
) -> Array:
    rows_key, mix_key, fits_key = jax.random.split(key, 3)
    first, second = _standardize(
        to_matrix(reference, num_batch_axes=1), to_matrix(draws, num_batch_axes=1)
    )
    x = jnp.concatenate([first, second])
    label = (jnp.arange(len(x)) >= len(first)).astype(x.dtype)
    num_rows, num_dims = x.shape
    order = jax.random.permutation(rows_key, num_rows)
    train, test = (
        Rows(x[order[part]], label[order[part]], jnp.asarray(weight))
        for part, weight in _folds(num_rows)
    )
    mix = jax.random.permutation(mix_key, train.x.shape[1])

    def score(fold: tuple[Array, Rows, Rows]) -> Array:
        num_fold, train, test = fold
        init_key, fit_key = jax.random.split(jax.random.fold_in(fits_key, num_fold))
        weights = init(init_key, num_dims, 10 * num_dims)
        weights, _ = fit(fit_key, weights, train, mix, max_epochs=max_epochs)
        right = (logits(weights, test.x) > 0) == (test.label > 0)
        return jnp.sum(right * test.weight) / jnp.sum(test.weight)

    scores = _for_each(score, (jnp.arange(NUM_FOLDS), train, test))
    return jnp.where(jnp.all(jnp.isfinite(x)), jnp.mean(scores), jnp.nan)


def _standardize(first: Array, second: Array) -> tuple[Array, Array]:
    """Scale both by the first, in single precision.

    A draw is subtracted before the mean is taken, which leaves fewer digits to
    lose where the mean is large against the spread.
    """
    origin = first[0]
    first, second = first - origin, second - origin
    mean, std = jnp.mean(first, axis=0), jnp.std(first, axis=0, ddof=1)
    scaled = (first - mean) / std, (second - mean) / std
    return jax.tree.map(lambda rows: rows.astype(jnp.float32), scaled)


_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def _folds(num_rows: int) -> tuple[_Part, _Part]:
    """Rows of the training and the test sets, `[F, N]` each, and their weights.

    Sizes differ by one if `num_rows` is not a multiple of the number of folds;
    the shorter ones are filled up with row 0 at weight 0.
    """
    rows = np.arange(num_rows)
    tests = np.array_split(rows, NUM_FOLDS)
    trains = [np.setdiff1d(rows, test) for test in tests]
    return _fill_up(trains), _fill_up(tests)


def _fill_up(parts: list[npt.NDArray[np.int64]]) -> _Part:
    size = max(map(len, parts))
    rows = np.stack([np.pad(part, (0, size - len(part))) for part in parts])
    weight = np.stack([np.arange(size) < len(part) for part in parts])
    return rows, weight.astype(np.float32)


def _for_each(function: Callable[[PyTree], Array], inputs: PyTree) -> Array:
    """Map over the first axis: on a CPU one by one, so that none waits for others."""
    return jax.lax.platform_dependent(
        inputs,
        cpu=lambda inputs: jax.lax.map(function, inputs),
        default=lambda inputs: jax.vmap(function)(inputs),
    )
