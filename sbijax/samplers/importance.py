"""Importance resampling of draws from the prior.

Candidates z_i from the prior have the likelihood as their weight,

    w_i = p(x | z_i),   p(x) ~ (1 / N) sum_i w_i,

and draws of the posterior are candidates, resampled in proportion to their weights.
There is no chain that could get stuck; the method fails where few of the candidates
have any weight, which the weights themselves tell.
"""

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Sampler, Target
from sbijax.checks import check_count
from sbijax.samplers.report import NO_DENSITY, guard, report
from sbijax.samplers.weights import draw_weighted

__all__ = ["importance_resampling", "start_positions"]


def importance_resampling(*, num_candidates: int = 10_000) -> Sampler:
    """Importance resampling from the prior: for likelihoods that are cheap and wide.

    Trust the draws while `pareto_k` is below 0.7 and `ess` is large.  A
    posterior that is narrow next to its prior, as in more than a few
    dimensions, needs another sampler.

    Args:
        num_candidates: draws N from the prior, at least 25.

    Returns:
        A sampler with one chain of exactly S draws in random order, among them
        repeated ones.  Its `ess` is Kish's (sum w)^2 / sum w^2, at most S, and
        `rhat` is NaN: independent draws have no chains to compare.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: fewer than 25 candidates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.importance import importance_resampling
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> sampler = importance_resampling()
        >>> z, info = sampler(jax.random.key(0), target, num_samples=1000)
        >>> z.shape, bool(info.pareto_k < 0.7)
        ((1, 1000, 1), True)

    Reference:
        Rubin. The calculation of posterior distributions by data augmentation:
        comment, 1987.
        Vehtari, Simpson, Gelman, Yao, Gabry. Pareto smoothed importance
        sampling, 2024.
    """
    num_candidates = check_count(num_candidates, "num_candidates", least=25)

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        prior_key, draw_key = jax.random.split(key)
        z = _draw_prior(prior_key, target, num_candidates)
        log_weights = jax.vmap(guard(target.log_likelihood))(z)
        nowhere = jnp.max(log_weights) <= NO_DENSITY
        weights = jax.nn.softmax(log_weights)
        draws, ess = draw_weighted(draw_key, z, weights, num_samples)
        log_mean = jax.nn.logsumexp(log_weights) - jnp.log(num_candidates)
        draws, info = report(
            draws[None],
            failed=nowhere[None],
            log_evidence=jnp.where(nowhere, -jnp.inf, log_mean),
            pareto_k=jnp.where(nowhere, jnp.inf, _pareto_k(weights)),
        )
        ess = jnp.where(nowhere, 0.0, ess)
        return draws, info._replace(ess=jnp.full_like(info.ess, ess))

    return sampler


def start_positions(
    key: Array, target: Target, num_positions: int, num_candidates: int = 1000
) -> Array:
    """Draw where chains start: candidates from the prior, weighted by likelihood.

    They are drawn without replacement, so that the chains start spread over the
    modes that the candidates have found.

    Args:
        key: PRNG key.
        target: the posterior.
        num_positions: number of chains C.
        num_candidates: draws from the prior, at least as many.

    Returns:
        Positions `[C, D]`.  Where fewer than C candidates have a density, each
        of these is used again; where none has, any are returned.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: no positions, or fewer candidates than positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.importance import start_positions
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (2,)),
        ...     log_prior=lambda z: -0.5 * jnp.sum(z**2),
        ...     log_likelihood=lambda z: jnp.log(z[0]),
        ... )
        >>> z = start_positions(jax.random.key(0), target, 4)
        >>> z.shape, bool(jnp.all(z[:, 0] > 0))
        ((4, 2), True)
    """
    num_positions = check_count(num_positions, "num_positions")
    num_candidates = check_count(num_candidates, "num_candidates", least=num_positions)
    prior_key, choice_key = jax.random.split(key)
    z = _draw_prior(prior_key, target, num_candidates)
    log_weights = jax.vmap(guard(target.log_likelihood))(z)
    log_prior = jax.vmap(guard(target.log_prior))(z)
    has_density = (log_weights > NO_DENSITY) & (log_prior > NO_DENSITY)
    # The largest of log w + Gumbel noise are draws without replacement.
    noise = jax.random.gumbel(choice_key, (num_candidates,), log_weights.dtype)
    scores = jnp.where(has_density, log_weights + noise, -jnp.inf)
    _, best = jax.lax.top_k(scores, num_positions)
    num_good = jnp.clip(jnp.sum(has_density), 1, num_positions)
    return z[best[jnp.arange(num_positions) % num_good]]


def _draw_prior(key: Array, target: Target, num_candidates: int) -> Array:
    """Draws `[N, D]` of the prior."""
    return jax.vmap(target.sample_prior)(jax.random.split(key, num_candidates))


def _pareto_k(weights: Array) -> Array:
    """Tail index of normalised weights `[N]`, infinite where it cannot be fitted.

    That is the case where nearly all of them are zero.
    """
    from blackjax.diagnostics import pareto_khat

    num = weights.size
    tail = min(3.0 * num**0.5, 0.2 * num) / num
    # The fit does not depend on the scale, but tiny weights count as none.
    k = pareto_khat(weights / jnp.max(weights), tail="upper", tail_frac=tail)
    return jnp.where(jnp.isnan(k), jnp.inf, k)
