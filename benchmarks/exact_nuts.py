"""Exact posteriors by NUTS, for tasks whose likelihood is known.

Run `python -m benchmarks.exact_nuts` to print the posterior of the lynx and
hare task.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from sbijax.base import Array, Prior, PyTree
from sbijax.simulators import Task, lynx_hare

__all__ = ["exact_nuts", "in_logs"]

_NUM_PARTICLES = 1024
_NUM_ROUNDS = 20
_MIN_ESS = 64.0  # of the tempered weights of one round


def exact_nuts(
    key: Array, task: Task, *, num_warmup: int, num_samples: int, num_chains: int
) -> tuple[PyTree, dict[str, Any]]:
    """Sample p(theta | x_observed) by NUTS in the vector space of the prior.

    The potential is U(z) = -log p(x | theta) - log p(theta) - log |d theta / dz|
    at theta = `from_vector(z)`, differentiated in forward mode.  Adaptive
    importance sampling fits a Gaussian to exp(-U) beforehand: it whitens z and
    gives the chains their starting points.  That changes the speed and not the
    target; it suits posteriors with one mode.

    Args:
        key: one typed PRNG key.
        task: a task with `log_likelihood` and `x_observed`.
        num_warmup: steps of adaptation per chain.
        num_samples: `S`, draws kept per chain.
        num_chains: `C`, run side by side in one compiled program.

    Returns:
        theta with leaves `[C, S, ...]`, and a dict: `r_hat` and `ess` in the
        structure of theta, `num_divergent`, `num_leapfrog` (mean per draw) and
        `seconds` (wall time, compilation included).

    Raises:
        ValueError: the task has no likelihood or no observation.

    Example:
        >>> import jax
        >>> from benchmarks.exact_nuts import exact_nuts
        >>> from sbijax.simulators import gaussian_linear
        >>> theta, info = exact_nuts(
        ...     jax.random.key(0), gaussian_linear(),
        ...     num_warmup=50, num_samples=20, num_chains=2,
        ... )
        >>> theta.shape
        (2, 20, 10)

    Reference:
        Hoffman and Gelman, The No-U-Turn sampler, 2014.
    """
    start = time.perf_counter()
    key_fit, key_run = jax.random.split(key)
    potential = _make_potential(task)
    mean, scale, z_init = _fit_gaussian(key_fit, task.prior, potential, num_chains)
    w_init = jax.scipy.linalg.solve_triangular(scale, (z_init - mean).T, lower=True).T
    kernel = numpyro.infer.NUTS(
        potential_fn=lambda w: potential(mean + scale @ w),
        forward_mode_differentiation=True,
    )
    mcmc = numpyro.infer.MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(
        key_run,
        init_params=w_init if num_chains > 1 else w_init[0],
        extra_fields=("diverging", "num_steps"),
    )
    w = mcmc.get_samples(group_by_chain=True)
    to_theta = jax.vmap(jax.vmap(lambda w: task.prior.from_vector(mean + scale @ w)))
    theta = jax.jit(to_theta)(w)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    return theta, {
        "r_hat": jax.tree.map(_diagnose(split_gelman_rubin), theta),
        "ess": jax.tree.map(_diagnose(effective_sample_size), theta),
        "num_divergent": int(jnp.sum(fields["diverging"])),
        "num_leapfrog": float(jnp.mean(fields["num_steps"])),
        "seconds": time.perf_counter() - start,
    }


def in_logs(prior: Prior) -> Prior:
    """The same prior with log theta as its vector form.

    For parameters that are positive and have no upper bound.  Products and
    ratios that the data fix, such as alpha gamma of the lynx and hare model,
    become sums, and the posterior is closer to a Gaussian.

    Example:
        >>> import jax
        >>> from benchmarks.exact_nuts import in_logs
        >>> from sbijax.simulators import lynx_hare
        >>> in_logs(lynx_hare().prior).from_vector(jax.numpy.zeros(8))["alpha"]
        Array(1., dtype=float32)
    """
    example = jax.tree.map(jnp.ones_like, prior.sample(jax.random.key(0)))
    unravel = ravel_pytree(example)[1]
    return prior._replace(
        to_vector=lambda theta: jnp.log(ravel_pytree(theta)[0]),
        from_vector=lambda z: unravel(jnp.exp(z)),
        log_det=jnp.sum,
    )


def _make_potential(task: Task) -> Callable[[Array], Array]:
    prior, log_likelihood, x = task.prior, task.log_likelihood, task.x_observed
    if log_likelihood is None or x is None:
        raise ValueError(
            f"task {task.name!r} needs a log_likelihood and an x_observed for exact "
            "inference."
        )

    def potential(z: Array) -> Array:
        theta = prior.from_vector(z)
        log_prior = prior.log_prob(theta) + prior.log_det(z)
        return -(log_likelihood(theta, x) + log_prior)

    return potential


@functools.partial(jax.jit, static_argnames=("prior", "potential", "num_draws"))
def _fit_gaussian(
    key: Array, prior: Prior, potential: Callable[[Array], Array], num_draws: int
) -> tuple[Array, Array, Array]:
    """Fit a Gaussian q to exp(-U) by rounds of tempered importance sampling.

    q begins with the moments of the prior.  Each round draws from q and refits
    it with weights (exp(-U) / q)^t, where t is the largest power of 1/2 that
    leaves an effective sample size.

    Returns:
        Mean `[D]` and Cholesky factor `[D, D]` of q, and weighted draws of the
        last round, `[num_draws, D]`.
    """
    powers = 0.5 ** jnp.arange(24.0)

    def fit(z: Array, weight: Array) -> tuple[Array, Array]:
        mean = weight @ z
        centred = z - mean
        covariance = centred.T @ (weight[:, None] * centred)
        covariance += 1e-6 * jnp.trace(covariance) * jnp.eye(prior.num_dims)
        return mean, jnp.linalg.cholesky(covariance)

    def refit(q: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Any]:
        mean, scale = q
        noise = jax.random.normal(key, (_NUM_PARTICLES, prior.num_dims))
        z = mean + noise @ scale.T
        log_q = -0.5 * jnp.sum(noise**2, axis=1)
        log_weight = jnp.nan_to_num(-jax.vmap(potential)(z) - log_q, nan=-jnp.inf)
        tempered = jax.nn.softmax(powers[:, None] * log_weight, axis=1)
        enough = 1.0 / jnp.sum(tempered**2, axis=1) >= _MIN_ESS
        weight = tempered[jnp.argmax(enough)]
        return fit(z, weight), (z, weight)

    key_prior, key_rounds, key_draws = jax.random.split(key, 3)
    theta = jax.vmap(prior.sample)(jax.random.split(key_prior, _NUM_PARTICLES))
    q = fit(
        jax.vmap(prior.to_vector)(theta), jnp.full(_NUM_PARTICLES, 1 / _NUM_PARTICLES)
    )
    rounds = jax.random.split(key_rounds, _NUM_ROUNDS)
    (mean, scale), (z, weight) = jax.lax.scan(refit, q, rounds)
    draws = jax.random.choice(key_draws, z[-1], (num_draws,), p=weight[-1])
    return mean, scale, draws


def _diagnose(statistic: Callable[[Any], Any]) -> Callable[[Array], np.ndarray]:
    """Apply a statistic of `[C, S, ...]` on the host."""
    return lambda leaf: np.asarray(statistic(np.asarray(leaf)))


def main() -> None:
    """Print the exact posterior of the lynx and hare task."""
    task = lynx_hare()
    task = task._replace(prior=in_logs(task.prior))
    theta, info = exact_nuts(
        jax.random.key(0), task, num_warmup=300, num_samples=1000, num_chains=4
    )
    print(f"{'parameter':<12}{'mean':>9}{'sd':>9}{'r_hat':>8}{'ess':>8}")
    for name, draws in theta.items():
        r_hat, ess = info["r_hat"][name], info["ess"][name]
        print(
            f"{name:<12}{draws.mean():>9.4f}{draws.std():>9.4f}{r_hat:>8.4f}{ess:>8.0f}"
        )
    print(
        f"{info['num_divergent']} divergent, {info['num_leapfrog']:.1f} leapfrog steps "
        f"per draw, {info['seconds']:.1f} s with compilation"
    )


if __name__ == "__main__":
    main()
