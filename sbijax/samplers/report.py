"""What all samplers share: guarded densities, and the report on their chains.

A density that is not a finite number is no density: it becomes a large negative
value, which no comparison can be poisoned by.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Target

__all__ = ["NO_DENSITY", "guard", "log_posterior", "replace_failed", "report"]

NO_DENSITY = -1e30


def guard(log_density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The log-density with `NO_DENSITY` where it is not a finite number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.samplers.report import NO_DENSITY, guard
        >>> bool(guard(jnp.log)(-1.0) == NO_DENSITY)
        True
    """

    def guarded(z: Array) -> Array:
        value = log_density(z)
        return jnp.where(jnp.isfinite(value), value, NO_DENSITY)

    return guarded


def log_posterior(target: Target) -> Callable[[Array], Array]:
    """The guarded sum of log-prior and log-likelihood."""
    return guard(lambda z: target.log_prior(z) + target.log_likelihood(z))


def replace_failed(chains: Array, failed: Array) -> Array:
    """Chains `[C, n, D]` with those that failed `[C]` replaced by the next good one.

    If all have failed they stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.samplers.report import replace_failed
        >>> chains = jnp.array([[[1.0]], [[2.0]], [[3.0]]])
        >>> replace_failed(chains, jnp.array([False, True, False])).ravel().tolist()
        [1.0, 3.0, 3.0]
    """
    num_chains = chains.shape[0]
    order = (jnp.arange(num_chains)[:, None] + jnp.arange(num_chains)) % num_chains
    first_good = jnp.argmax(~failed[order], axis=1)
    return chains[order[jnp.arange(num_chains), first_good]]


def report(
    chains: Array,
    *,
    acceptance: Array | None = None,
    num_divergent: Array | int = 0,
    failed: Array | None = None,
    log_evidence: Array | float = jnp.nan,
    pareto_k: Array | float = jnp.nan,
) -> tuple[Array, ChainInfo]:
    """Replace failed chains and report on the result.

    Args:
        chains: positions `[C, n, D]`.
        acceptance: mean acceptance rate of each chain `[C]`, NaN by default.
        num_divergent: divergent transitions.
        failed: which chains failed `[C]`, none by default.
        log_evidence: estimate of log p(x).
        pareto_k: tail index of importance weights.

    Returns:
        The chains, and their info.  R-hat and ESS are NaN with fewer than four
        draws a chain, and R-hat with a single chain too.

    Reference:
        Vehtari, Gelman, Simpson, Carpenter, Burkner. Rank-normalization,
        folding, and localization: an improved R-hat for assessing convergence
        of MCMC, 2021.
    """
    num_chains, length, num_dims = chains.shape
    if failed is None:
        failed = jnp.zeros(num_chains, bool)
    failed = failed | ~jnp.all(jnp.isfinite(chains), axis=(1, 2))
    chains = replace_failed(chains, failed)
    rhat = ess = jnp.full(num_dims, jnp.nan)
    if length >= 4:
        # Replaced chains are copies: they add no draws of their own.
        by_dim = jnp.moveaxis(chains, 2, 0)
        ess = jnp.mean(~failed) * jax.lax.map(_ess, by_dim)
        if num_chains > 1:
            rhat = jax.lax.map(_rhat, by_dim)
    info = ChainInfo(
        num_invalid=jnp.sum(~jnp.all(jnp.isfinite(chains), axis=2)),
        num_outside=jnp.zeros((), int),
        num_entries=jnp.zeros((), int),
        rhat=rhat,
        ess=ess,
        acceptance=jnp.full(num_chains, jnp.nan) if acceptance is None else acceptance,
        num_divergent=jnp.asarray(num_divergent),
        num_failed=jnp.sum(failed),
        log_evidence=jnp.asarray(log_evidence),
        pareto_k=jnp.asarray(pareto_k),
    )
    return chains, info


def _rhat(chains: Array) -> Array:
    from blackjax import rhat

    return jnp.asarray(rhat(chains))


def _ess(chains: Array) -> Array:
    from blackjax import ess_bulk

    return jnp.asarray(ess_bulk(chains))
