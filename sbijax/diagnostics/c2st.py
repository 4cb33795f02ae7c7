"""Classifier two-sample test: can a classifier tell two samples apart?

The accuracy of a classifier trained to tell draws of q from draws of the
reference p, on draws it has not seen: 0.5 if q = p, 1 if they do not overlap.
The protocol is that of the sbibm benchmark, so that numbers compare: an MLP
with two layers of 10 D units, five shuffled folds, both samples standardised
by mean and standard deviation of the reference.  Some newer papers put a random
forest in its place, on all else alike; its accuracies are on another scale.

Reference:
    Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", 2017.
    Lueckmann, Boelts, Greenberg, Gonçalves and Macke, "Benchmarking
    simulation-based inference", 2021.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sbijax.base import PyTree
from sbijax.checks import check_count
from sbijax.diagnostics._pair import NUM_FOLDS, check_pair, to_rows

__all__ = ["c2st", "c2st_forest"]


def c2st(
    reference: PyTree, draws: PyTree, *, seed: int = 1, num_jobs: int = 1
) -> float:
    """Cross-validated accuracy of a classifier between two samples.

    Runs on the host with scikit-learn; 10,000 draws against 10,000 take from
    ten seconds to a minute, and a fraction of that with `c2st_compiled`.  The two
    samples do not play the same part: the first one sets the scale.

    Args:
        reference: draws of the reference, an array `[S, D]` or a theta pytree
            with leaves `[S, ...]`.
        draws: draws to judge, of the same structure; their number may differ,
            but 0.5 is the perfect score only if it does not.
        seed: seed of the folds and of the classifier's weights.
        num_jobs: processes that share the five folds; no effect on the result.

    Returns:
        Accuracy between 0 and 1; 0.5 is perfect.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: samples of different D, with non-finite values, with fewer
            rows than folds, or a reference without spread.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> reference = rng.normal(size=(100, 1))
        >>> c2st(reference, reference + 100.0)
        1.0

    Reference:
        Lueckmann et al., "Benchmarking simulation-based inference", 2021.
    """

    def make_mlp(num_dims: int) -> Any:
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(
            hidden_layer_sizes=(10 * num_dims, 10 * num_dims),
            activation="relu",
            solver="adam",
            max_iter=10_000,
            random_state=seed,
        )

    return _cross_validate(make_mlp, reference, draws, seed, num_jobs)


def c2st_forest(
    reference: PyTree,
    draws: PyTree,
    *,
    seed: int = 1,
    num_trees: int = 100,
    num_jobs: int = 1,
) -> float:
    """Cross-validated accuracy of a random forest between two samples.

    The forest of scikit-learn with its defaults, as sbi's `c2st` uses it.  It is
    better than the MLP at edges and worse at small shifts, so figures of the two
    must not be compared.  10,000 draws against 10,000 take half a minute.

    Args:
        reference: draws of the reference, an array `[S, D]` or a theta pytree
            with leaves `[S, ...]`.
        draws: draws to judge, of the same structure.
        seed: seed of the folds and of the trees.
        num_trees: number of trees.
        num_jobs: processes that share the five folds; no effect on the result.

    Returns:
        Accuracy between 0 and 1; 0.5 is perfect.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: what `c2st` refuses, or a number of trees below 1.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> reference = rng.normal(size=(50, 1))
        >>> c2st_forest(reference, reference + 100.0, num_trees=10)
        1.0

    Reference:
        Breiman, "Random forests", 2001.
        Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", 2017.
    """
    num_trees = check_count(num_trees, "num_trees")

    def make_forest(num_dims: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(n_estimators=num_trees, random_state=seed)

    return _cross_validate(make_forest, reference, draws, seed, num_jobs)


def _cross_validate(
    make_classifier: Callable[[int], Any],
    reference: PyTree,
    draws: PyTree,
    seed: int,
    num_jobs: int,
) -> float:
    check_pair(reference, draws)
    first, second = _standardize(to_rows(reference), to_rows(draws))
    try:
        from sklearn.model_selection import KFold, cross_val_score

        classifier = make_classifier(first.shape[1])
    except ImportError as error:
        raise ImportError(
            "c2st needs scikit-learn: install it with `pip install scikit-learn`; "
            "c2st_compiled does without."
        ) from error
    scores = cross_val_score(
        classifier,
        np.concatenate([first, second]),
        np.repeat([0.0, 1.0], [len(first), len(second)]),
        cv=KFold(n_splits=NUM_FOLDS, shuffle=True, random_state=seed),
        scoring="accuracy",
        n_jobs=num_jobs,
    )
    return float(np.mean(scores))


def _standardize(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale both by the first; the classifier works in single precision."""
    mean, std = first.mean(axis=0), first.std(axis=0, ddof=1)
    return (
        ((first - mean) / std).astype(np.float32),
        ((second - mean) / std).astype(np.float32),
    )
