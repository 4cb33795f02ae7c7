"""Sequential Monte Carlo ABC.

Populations of particles approach the posterior,

    p(theta | d(s(x), s_o) <= epsilon_t),   epsilon_1 > epsilon_2 > ...,

each proposed around the last; see `abc.populations`.
"""

from collections.abc import Callable

from sbijax.abc.adjustment import Adjustment
from sbijax.abc.distances import Distance
from sbijax.abc.kernels import Kernel, local_kernel
from sbijax.abc.populations import Schedule
from sbijax.abc.summaries import Summary
from sbijax.base import Array, Estimator, Prior, PyTree
from sbijax.checks import check_count, check_record
from sbijax.estimators._abc import abc_posterior

__all__ = ["make_smc_abc"]


def make_smc_abc(
    prior: Prior,
    simulator: Callable[[Array, PyTree], PyTree],
    *,
    num_simulations: int = 100_000,
    num_particles: int | None = None,
    num_new: int | None = None,
    min_tolerance: float = 0.0,
    min_acceptance: float = 0.002,
    distance: Distance | Callable[[PyTree, PyTree], Array] | None = None,
    summary: Summary | Callable[[PyTree], PyTree] | None = None,
    kernel: Kernel | None = None,
    adjustment: Adjustment | None = None,
) -> Estimator:
    """Make SMC-ABC: no training, and new simulations for each observation.

    `init` fits the scales of the distance and the summary to a few simulations.
    Everything has fixed shapes: one program serves all observations and seeds, and
    `jax.vmap` runs many at once.

    Args:
        prior: the prior of theta.
        simulator: `simulator(key, theta) -> x`, a JAX function of one draw.
        num_simulations: what one observation costs at most, met exactly unless a
            limit below stops earlier.
        num_particles: particles N that draws are resampled from: more of them for
            smoother posteriors, as in many dimensions; fewer get closer.  By default
            2 D sqrt(num_simulations), at most a quarter of the simulations, but no
            fewer than 2 D.
        num_new: simulations M of each population, by default N; the tolerance falls
            to the quantile N / (N + M) of old and new.
        min_tolerance: stop when all particles are within it.
        min_acceptance: stop when a smaller share of the simulations is accepted.
        distance: between summaries, by default `abc.euclidean()`; a `Distance` or a
            function `(s, observed) -> scalar`.  Those that are NaN or negative count
            as failed simulations.
        summary: what of x is compared, by default all of it; a `Summary` or a
            function of one x.
        kernel: moves particles, by default `abc.local_kernel()`.
        adjustment: of the last particles, such as `abc.linear_adjustment()`; none by
            default.

    Returns:
        The estimator; `sample` resamples the last population and returns an
        `AbcInfo`, with the particles and their weights.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: counts below 2, or fewer simulations than particles.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> def simulator(key, theta):
        ...     return theta + jax.random.normal(key)
        >>> abc = sj.make_smc_abc(
        ...     prior, simulator, num_simulations=5_000, num_particles=500
        ... )
        >>> sims = sj.simulate(jax.random.key(0), prior, simulator, 100)
        >>> params = abc.init(jax.random.key(1), sims)
        >>> theta, info = abc.sample(params, jax.random.key(2), 1.0, num_samples=50)
        >>> theta.shape, int(info.num_simulations)
        ((50,), 5000)

    Reference:
        Beaumont, Cornuet, Marin, Robert. Adaptive approximate Bayesian computation,
        2009.
        Del Moral, Doucet, Jasra. An adaptive sequential Monte Carlo method for
        approximate Bayesian computation, 2012.
        Lenormand, Jabot, Deffuant. Adaptive approximate Bayesian computation for
        complex models, 2013.
    """
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    num_simulations = check_count(num_simulations, "num_simulations", least=2)
    if num_particles is None:
        num_particles = _default_num_particles(num_simulations, prior.num_dims)
    num_particles = check_count(num_particles, "num_particles", least=2)
    num_new = num_particles if num_new is None else check_count(num_new, "num_new")
    if num_simulations < num_particles:
        raise ValueError(
            f"num_simulations={num_simulations} is less than "
            f"num_particles={num_particles}, which the first population needs."
        )
    if not min_tolerance >= 0.0:
        raise ValueError(f"min_tolerance must not be negative, got {min_tolerance}.")
    if not 0.0 <= min_acceptance < 1.0:
        raise ValueError(f"min_acceptance must lie in [0, 1), got {min_acceptance}.")
    schedule = Schedule(
        num_particles=num_particles,
        num_new=num_new,
        num_simulations=num_simulations,
        min_tolerance=float(min_tolerance),
        min_acceptance=float(min_acceptance),
    )
    return abc_posterior(
        prior,
        simulator,
        schedule,
        distance=distance,
        summary=summary,
        kernel=local_kernel() if kernel is None else kernel,
        adjustment=adjustment,
    )


def _default_num_particles(num_simulations: int, num_dims: int) -> int:
    """What came closest to exact posteriors of fresh observations.

    Few particles leave simulations for more populations, which come closer; too few of
    them in many dimensions lose the directions in which none has moved.
    """
    share = 2.0 * num_dims * num_simulations**0.5
    most = max(num_simulations // 4, 2 * num_dims)
    return min(most, round(share), num_simulations)
