"""Expected coverage: how often do credible regions hold the truth?

Averaged over the joint, a credible region of level 1 - alpha holds theta* with
probability 1 - alpha if the posterior is calibrated,

    E_{p(theta, x)} [ theta* in Theta_{q(theta | x)}(1 - alpha) ] = 1 - alpha,

less often if it is overconfident, more often if it is conservative.  Both kinds
of region follow from ranks among posterior draws: the central interval of one
parameter from its own rank, the highest-density region from that of
log q(theta | x).

Reference:
    Hermans, Delaunoy, Rozet, Wehenkel, Begy and Louppe, "A trust crisis in
    simulation-based inference? Your posterior approximations can be
    unfaithful", 2022.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sbijax.diagnostics.sbc import SBCResult

__all__ = ["CoverageResult", "coverage"]

_Floats = npt.NDArray[np.float64]


class CoverageResult(NamedTuple):
    """Nominal and empirical coverage of credible regions.

    Attributes:
        names: what each column covers; the scalar parameters (central
            intervals) first, then `highest density` (the joint region) where
            the estimator has a density.
        nominal: `[L]` levels of the regions.
        empirical: `[L, P]` share of replicates whose region holds the truth.
        standard_error: `[L, P]` binomial standard error of `empirical`.
        lower: `[L]` lower end of the range in which a calibrated posterior's
            coverage falls with probability 95 %, level by level.
        upper: `[L]` upper end of that range.
        num_replicates: number of replicates N.
    """

    names: tuple[str, ...]
    nominal: _Floats
    empirical: _Floats
    standard_error: _Floats
    lower: _Floats
    upper: _Floats
    num_replicates: int


def coverage(
    result: SBCResult, *, levels: npt.ArrayLike | None = None
) -> CoverageResult:
    """Empirical coverage of central intervals and highest-density regions.

    A rank r among S draws stands for the stretch [r, r + 1] / (S + 1) of the
    posterior's distribution function, and counts by the share of the stretch
    that lies in the region.  So the expected coverage of a calibrated
    posterior is the nominal level for every S.

    Args:
        result: ranks from `sbc`.
        levels: `[L]` levels between 0 and 1; 0.05, 0.10, ..., 0.95 by default.

    Returns:
        Nominal and empirical coverage with binomial errors.

    Raises:
        ValueError: levels that are not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> from sbijax.diagnostics import sbc_result
        >>> result = sbc_result(np.arange(100)[:, None], ("alpha",), 99)
        >>> coverage(result, levels=[0.5, 0.9]).empirical.ravel().round(2).tolist()
        [0.5, 0.9]

    Reference:
        Hermans et al., "A trust crisis in simulation-based inference? Your
        posterior approximations can be unfaithful", 2022.
    """
    nominal = _check_levels(levels)
    num_replicates = len(result.ranks)
    names = result.names[: result.num_parameters]
    is_parameter = np.ones(len(names), bool)
    if result.names[len(names) : len(names) + 1] == ("log_prob",):
        names += ("highest density",)
        is_parameter = np.append(is_parameter, False)
    low = np.where(is_parameter, 0.5 - nominal[:, None] / 2, 1 - nominal[:, None])
    high = np.where(is_parameter, 0.5 + nominal[:, None] / 2, 1.0)
    ranks = result.ranks[:, : len(names)]
    shares = [
        _share(ranks, result.num_samples, *ends) for ends in zip(low, high, strict=True)
    ]
    empirical = np.stack(shares)
    lower, upper = _binomial_range(num_replicates, nominal)
    return CoverageResult(
        names=names,
        nominal=nominal,
        empirical=empirical,
        standard_error=np.sqrt(empirical * (1 - empirical) / num_replicates),
        lower=lower,
        upper=upper,
        num_replicates=num_replicates,
    )


def _check_levels(levels: npt.ArrayLike | None) -> _Floats:
    if levels is None:
        return np.linspace(0.05, 0.95, 19)
    nominal = np.atleast_1d(np.asarray(levels, dtype=np.float64))
    inside = (nominal > 0.0) & (nominal < 1.0)
    if nominal.ndim != 1 or nominal.size == 0 or not np.all(inside):
        raise ValueError(f"levels must lie between 0 and 1, got {levels}.")
    return nominal


def _share(
    ranks: npt.NDArray[np.int64], num_samples: int, low: _Floats, high: _Floats
) -> _Floats:
    """Mean share of each rank's stretch that lies between low and high, [P]."""
    left = ranks / (num_samples + 1)
    right = (ranks + 1) / (num_samples + 1)
    overlap = np.minimum(right, high) - np.maximum(left, low)
    return np.mean(np.clip(overlap * (num_samples + 1), 0.0, 1.0), axis=0)


def _binomial_range(num_trials: int, shares: _Floats) -> tuple[_Floats, _Floats]:
    """2.5 % and 97.5 % quantiles of the share of successes."""
    from scipy import special

    counts = np.arange(num_trials + 1)
    below = special.bdtr(counts[:, None], num_trials, shares)
    lower = np.argmax(below >= 0.025, axis=0)
    upper = np.argmax(below >= 0.975, axis=0)
    return lower / num_trials, upper / num_trials
