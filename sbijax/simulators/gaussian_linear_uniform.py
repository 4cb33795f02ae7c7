"""Linear Gaussian model with a uniform prior on the mean.

    theta ~ U(-1, 1)^10,  x ~ N(theta, 0.1 I)

The posterior is N(x, 0.1 I), cut off at the bounds of the prior.
"""

import jax.numpy as jnp

from sbijax.simulators.gaussian_linear import add_noise, log_likelihood_of_mean
from sbijax.simulators.task import Task, task_factory

__all__ = ["gaussian_linear_uniform"]

_NUM_DIMS = 10
_OBSERVED = (
    *(-0.53739023, -0.23864163, 0.81923723, 0.6407443, 0.41616207),
    *(-0.09746933, 1.1292295, -0.05842293, -0.97055256, -0.9423423),
)


@task_factory
def gaussian_linear_uniform() -> Task:
    """Linear Gaussian model, with theta `[10]` uniform on [-1, 1]^10 and x `[10]`.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import gaussian_linear_uniform
        >>> gaussian_linear_uniform().x_observed.shape
        (10,)

    Reference:
        Lueckmann et al., Benchmarking simulation-based inference, 2021.
    """
    import numpyro.distributions as dist

    from sbijax.priors import make_prior

    prior = dist.Uniform(-1.0, 1.0).expand([_NUM_DIMS]).to_event(1)
    return Task(
        name="gaussian_linear_uniform",
        prior=make_prior(prior),
        simulator=add_noise,
        log_likelihood=log_likelihood_of_mean,
        x_observed=jnp.array(_OBSERVED),
    )
