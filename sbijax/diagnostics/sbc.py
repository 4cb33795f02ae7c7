"""Simulation-based calibration: are the posteriors right on average?

If theta* ~ p(theta), x ~ p(x | theta*) and theta_1, ..., theta_S ~ p(theta | x),
then theta* and the draws are exchangeable, and for any quantity f the rank

    r = #{s : f(theta_s, x) < f(theta*, x)},   ties broken at random,

is uniform on {0, ..., S}.  Here f is each scalar parameter, log q(theta | x)
where there is a density, and what the caller adds.  Parameters and log q look
the same for a posterior that ignores the data and returns the prior; a quantity
of both theta and x, such as the log-likelihood or a distance of theta from an
estimate on x, tells them apart.

Reference:
    Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian
    inference algorithms with simulation-based calibration", 2018.
    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari,
    "Simulation-based calibration checking for Bayesian computation: the choice
    of test quantities shapes sensitivity", 2023.
"""

import warnings
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from sbijax.base import Array, Estimator, PyTree, SbijaxWarning, Simulations
from sbijax.checks import check_count, check_key, check_record, describe
from sbijax.diagnostics._held_out import held_out
from sbijax.diagnostics._names import scalar_names
from sbijax.diagnostics._ranks import Quantities, rank_replicates
from sbijax.diagnostics.uniformity import (
    UniformityBand,
    uniformity_band,
    uniformity_p_value,
)

__all__ = ["SBCResult", "sbc", "sbc_result"]

_DRAWS_AT_ONCE = 25_000


class SBCResult(NamedTuple):
    """Ranks of the true parameters among posterior draws, and their test.

    Attributes:
        names: what each column ranks; the scalar parameters first, then
            `log_prob` where the estimator has a density, then added
            quantities.
        ranks: `[N, P]` integers from 0 to `num_samples`.
        num_samples: posterior draws per replicate, S.
        num_parameters: how many of the columns are parameters.
        num_invalid: replicates left out because a draw or its log-density was
            not a finite number.
        p_values: `[P]`, one test of uniformity per column.
        global_p_value: smallest of them, adjusted for their number (Holm).
        band: 95 % simultaneous band for the empirical distribution of one
            column.
    """

    names: tuple[str, ...]
    ranks: npt.NDArray[np.int64]
    num_samples: int
    num_parameters: int
    num_invalid: int
    p_values: npt.NDArray[np.float64]
    global_p_value: float
    band: UniformityBand


def sbc(
    key: Array,
    estimator: Estimator,
    params: PyTree,
    sims: Simulations,
    *,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    quantities: Quantities | None = None,
) -> SBCResult:
    """Rank held-out parameters among posterior draws given their own data.

    The same result serves `coverage`: the ranks are all that it needs.  Give
    `estimator._replace(log_prob=None)` to leave out the log-density where it
    is costly.  Draws of a Markov chain have to be thinned until they are
    nearly independent, or the ranks pile up at both ends.

    Args:
        key: PRNG key.
        estimator: the estimator; functions and names of a record that was
            used before are not traced again.
        params: its parameters.
        sims: `N` held-out pairs from the joint p(theta) p(x | theta), not used
            in training; rows of weight 0 are left out.
        num_samples: posterior draws per pair, S.
        chunk_size: pairs handled at once; bounds the memory and has no effect
            on the result.  By default about 25,000 draws are in flight,
            which suits the caches of a CPU; an accelerator likes more.
        quantities: `(theta, x) -> {name: scalar}` of one theta and one x, a JAX
            function; further columns to rank.

    Returns:
        Ranks, p-values and the band to judge them by.

    Raises:
        ValueError: no pairs, unequal weights, a count below 1, draws that are
            structured unlike theta, or no replicate with finite draws.

    Example:
        >>> import jax
        >>> from sbijax.base import Estimator
        >>> from sbijax.data import make_simulations
        >>> def sample_fn(params, key, x, *, num_samples):
        ...     noise = jax.random.normal(key, (num_samples,))
        ...     return x / 2 + noise / 2**0.5, None
        >>> exact = Estimator(init=None, loss=None, log_prob=None, sample=sample_fn)
        >>> theta, noise = jax.random.normal(jax.random.key(0), (2, 200))
        >>> sims = make_simulations(theta, theta + noise)
        >>> result = sbc(jax.random.key(1), exact, None, sims, num_samples=100)
        >>> result.names, result.ranks.shape, result.global_p_value > 0.01
        (('theta',), (200, 1), True)

    Reference:
        Talts et al., "Validating Bayesian inference algorithms with
        simulation-based calibration", 2018.
    """
    check_key(key)
    order = "The order is sbc(key, estimator, params, sims)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(sims, Simulations, "sims", order)
    theta, x = held_out(sims)
    num_samples = check_count(num_samples, "num_samples")
    if chunk_size is None:
        chunk_size = max(1, _DRAWS_AT_ONCE // num_samples)
    chunk_size = check_count(chunk_size, "chunk_size")
    parameters = scalar_names(theta, num_batch_axes=1)
    names = parameters + _added_names(estimator, quantities, theta, x)
    num_replicates = len(jax.tree.leaves(theta)[0])
    num_chunks = -(-num_replicates // chunk_size)
    ranks, valid = rank_replicates(
        key,
        estimator,
        params,
        theta,
        x,
        quantities=quantities,
        num_samples=num_samples,
        chunk_size=-(-num_replicates // num_chunks),
    )
    kept = _drop_invalid(np.asarray(ranks), np.asarray(valid))
    result = sbc_result(kept, names, num_samples, num_parameters=len(parameters))
    return result._replace(num_invalid=num_replicates - len(kept))


def sbc_result(
    ranks: npt.ArrayLike,
    names: tuple[str, ...],
    num_samples: int,
    *,
    num_parameters: int | None = None,
) -> SBCResult:
    """Test ranks that were computed elsewhere.

    Args:
        ranks: `[N, P]` integers from 0 to `num_samples`.
        names: `P` names of the columns.
        num_samples: posterior draws per replicate, S.
        num_parameters: how many leading columns are parameters; all by
            default.

    Returns:
        The ranks with their tests and band.

    Raises:
        ValueError: names do not match the columns, or ranks are out of range.

    Example:
        >>> import numpy as np
        >>> result = sbc_result(np.arange(100)[:, None], ("alpha",), 99)
        >>> result.global_p_value
        1.0
    """
    array = np.asarray(ranks)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise ValueError(
            f"ranks must be [N, P] with one column for each of the {len(names)} "
            f"names, got shape {array.shape}."
        )
    p_values = np.array([uniformity_p_value(r, num_samples) for r in array.T])
    return SBCResult(
        names=tuple(names),
        ranks=array.astype(np.int64),
        num_samples=num_samples,
        num_parameters=len(names) if num_parameters is None else num_parameters,
        num_invalid=0,
        p_values=p_values,
        global_p_value=min(1.0, len(p_values) * float(p_values.min())),
        band=uniformity_band(len(array), num_samples),
    )


def _added_names(
    estimator: Estimator, quantities: Quantities | None, theta: PyTree, x: PyTree
) -> tuple[str, ...]:
    names = () if estimator.log_prob is None else ("log_prob",)
    if quantities is None:
        return names
    one = jax.tree.map(lambda leaf: leaf[0], (theta, x))
    shapes = jax.eval_shape(quantities, *one)
    scalars = isinstance(shapes, dict) and all(
        getattr(value, "shape", None) == () for value in shapes.values()
    )
    if not scalars or "log_prob" in shapes:
        raise ValueError(
            "quantities must return a dict of scalars, none of them called "
            f"log_prob; got {describe(shapes)}."
        )
    return names + tuple(sorted(shapes))


def _drop_invalid(
    ranks: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    num_invalid = int(np.sum(~valid))
    if num_invalid == len(valid):
        raise ValueError(
            "every replicate has posterior draws or log-densities that are not "
            "finite numbers. Check the parameters of the estimator."
        )
    if num_invalid:
        warnings.warn(
            f"{num_invalid} of {len(valid)} replicates left out: their posterior "
            "draws or log-densities were not finite numbers.",
            SbijaxWarning,
            stacklevel=3,
        )
    return ranks[valid]
