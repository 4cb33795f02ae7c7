"""Rejection ABC.

Draws from the prior are kept where their data are close to the observation,

    p(theta | d(s(x), s_o) <= epsilon),

which is the posterior as epsilon goes to 0 for sufficient summaries s.
"""

import math
from collections.abc import Callable

from sbijax.abc.adjustment import Adjustment
from sbijax.abc.distances import Distance
from sbijax.abc.kernels import normal_kernel
from sbijax.abc.populations import Schedule
from sbijax.abc.summaries import Summary
from sbijax.base import Array, Estimator, Prior, PyTree
from sbijax.checks import check_count, check_fraction
from sbijax.estimators._abc import abc_posterior

__all__ = ["make_rejection_abc"]


def make_rejection_abc(
    prior: Prior,
    simulator: Callable[[Array, PyTree], PyTree],
    *,
    num_simulations: int = 100_000,
    quantile: float = 0.01,
    tolerance: float | None = None,
    distance: Distance | Callable[[PyTree, PyTree], Array] | None = None,
    summary: Summary | Callable[[PyTree], PyTree] | None = None,
    adjustment: Adjustment | None = None,
) -> Estimator:
    """Make rejection ABC: no training, and new simulations for each observation.

    `init` fits the scales of the distance and the summary to a few simulations.

    Args:
        prior: the prior of theta.
        simulator: `simulator(key, theta) -> x`, a JAX function of one draw.
        num_simulations: what one observation costs.
        quantile: share of the simulations that is kept, the closest ones.
        tolerance: keep those within this distance instead.
        distance: between summaries, see `make_smc_abc`.
        summary: what of x is compared, see `make_smc_abc`.
        adjustment: of what is kept, such as `abc.linear_adjustment()`.

    Returns:
        The estimator; `sample` resamples what was kept and returns an `AbcInfo`.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: a count below 1, a quantile outside (0, 1), a negative tolerance,
            or fewer than two simulations kept.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key)
        >>> abc = sj.make_rejection_abc(prior, simulator, num_simulations=10_000)
        >>> sims = sj.simulate(jax.random.key(0), prior, simulator, 100)
        >>> params = abc.init(jax.random.key(1), sims)
        >>> sj.infer(abc, params, 1.0).sample(jax.random.key(2), 50).shape
        (50,)

    Reference:
        Pritchard, Seielstad, Perez-Lezaun, Feldman. Population growth of human Y
        chromosomes: a study of Y chromosome microsatellites, 1999.
    """
    num_simulations = check_count(num_simulations, "num_simulations", least=2)
    quantile = check_fraction(quantile, "quantile")
    num_kept = num_simulations
    if tolerance is None:
        num_kept = math.ceil(quantile * num_simulations)
    elif not tolerance >= 0.0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}.")
    if num_kept < 2:
        raise ValueError(
            f"quantile={quantile} of num_simulations={num_simulations} keeps "
            f"{num_kept}. Raise one of them."
        )
    schedule = Schedule(
        num_particles=num_kept,
        num_new=num_simulations,
        num_simulations=num_simulations,
        min_tolerance=0.0,
        min_acceptance=0.0,
    )
    return abc_posterior(
        prior,
        simulator,
        schedule,
        distance=distance,
        summary=summary,
        kernel=normal_kernel(),
        adjustment=adjustment,
        max_distance=tolerance,
    )
