"""The log score: which posterior gives held-out parameters the higher density?

For pairs (theta*, x) from the joint, the mean of log q(theta* | x) is largest for the
posterior itself, and falls short of that by

    E_{p(x)} KL(p(theta | x) || q(theta | x)),

so the higher of two means is the better posterior, whatever it was made with.  Methods
that know a density up to p(x), such as NLE and NRE, are on the same scale once the
evidence that their sampler estimates is taken off.

Reference:
    Gneiting, Raftery. Strictly proper scoring rules, prediction, and estimation, 2007.
    Lueckmann, Boelts, Greenberg, Goncalves, Macke. Benchmarking simulation-based
    inference, 2021.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sbijax.base import Array, ChainInfo, Estimator, PyTree, Simulations
from sbijax.checks import check_count, check_key, check_record
from sbijax.diagnostics._held_out import held_out

__all__ = ["log_score"]

_DRAWS_AT_ONCE = 25_000


def log_score(
    key: Array,
    estimator: Estimator,
    params: PyTree,
    sims: Simulations,
    *,
    num_samples: int = 1000,
    chunk_size: int | None = None,
) -> npt.NDArray[np.float64]:
    """Log posterior density of the true theta of each pair, to compare methods by.

    The mean over pairs is the score, in nats and in units of theta; of two methods
    scored on the same pairs, take the standard error of the mean difference.

    Args:
        key: PRNG key, for the draws that the evidence is estimated with.
        estimator: the estimator; functions and names of a record that was used
            before are not traced again.
        params: its parameters.
        sims: `N` held-out pairs from the joint p(theta) p(x | theta), not used in
            training; rows of weight 0 are left out.
        num_samples: draws for each estimate of p(x); without effect where the density
            is normalised.
        chunk_size: pairs handled at once; bounds the memory.  By default about 25,000
            draws are in flight.

    Returns:
        `[N]` log-densities, -inf where theta is outside the support.

    Raises:
        TypeError: the estimator has no density.
        ValueError: no pairs, unequal weights, a count below 1; a sampler that does
            not estimate p(x), or whose chains all failed for some x.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta, noise = jax.random.normal(jax.random.key(0), (2, 700))
        >>> sims = sj.make_simulations(theta[:500], (theta + noise)[:500])
        >>> test = sj.make_simulations(theta[500:], (theta + noise)[500:])
        >>> npe = sj.make_npe(prior, density=sj.densities.mdn(num_components=1))
        >>> params, _ = sj.train(jax.random.key(1), npe, sims, progress=False)
        >>> scores = sj.diagnostics.log_score(jax.random.key(2), npe, params, test)
        >>> scores.shape, bool(-1.3 < scores.mean() < -0.9)  # exact: -1.07
        ((200,), True)

    Reference:
        Gneiting, Raftery. Strictly proper scoring rules, prediction, and estimation,
        2007.
    """
    check_key(key)
    order = "The order is log_score(key, estimator, params, sims)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(sims, Simulations, "sims", order)
    if estimator.log_prob is None:
        raise TypeError(
            "this estimator has no log_prob to score. Compare its draws with "
            "diagnostics.sbc, or with c2st where a reference is known."
        )
    theta, x = held_out(sims)
    num_samples = check_count(num_samples, "num_samples")
    if chunk_size is None:
        chunk_size = max(1, _DRAWS_AT_ONCE // num_samples)
    chunk_size = check_count(chunk_size, "chunk_size")
    values, evidence = _score(key, params, theta, x, estimator, num_samples, chunk_size)
    values, evidence = np.asarray(values, float), np.asarray(evidence, float)
    num_unknown = int(np.sum(~np.isfinite(evidence)))
    if num_unknown:
        raise ValueError(
            f"for {num_unknown} of {len(evidence)} pairs the sampler gave no estimate "
            "of p(x). Make the estimator with one that has a log_evidence, such as "
            "samplers.tempered_smc() or samplers.nested_sampling(); where it has, all "
            "its chains failed there."
        )
    return values - evidence


@partial(jax.jit, static_argnames=("estimator", "num_samples", "chunk_size"))
def _score(
    key: Array,
    params: PyTree,
    theta: PyTree,
    x: PyTree,
    estimator: Estimator,
    num_samples: int,
    chunk_size: int,
) -> tuple[Array, Array]:
    """`[N]` values of `log_prob`, and log p(x) where it lacks that, else 0."""
    draw = partial(estimator.sample, num_samples=num_samples)
    one_x = jax.tree.map(lambda leaf: leaf[0], x)
    _, info = jax.eval_shape(draw, params, key, one_x)
    is_normalised = not isinstance(info, ChainInfo)

    def score_one(args: tuple[Array, PyTree, PyTree]) -> tuple[Array, Array]:
        index, theta, x = args
        assert estimator.log_prob is not None
        value = estimator.log_prob(params, theta, x)
        if is_normalised:
            return value, jnp.zeros_like(value)
        _, info = draw(params, jax.random.fold_in(key, index), x)
        return value, info.log_evidence

    rows = jnp.arange(len(jax.tree.leaves(theta)[0]))
    return jax.lax.map(score_one, (rows, theta, x), batch_size=chunk_size)
