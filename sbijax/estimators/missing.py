"""Missing entries: training on data in which some are hidden at random.

The posterior given what is there, p(theta | x_S), is learned for all sets S of
entries at once, by hiding others in every batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    Estimator,
    LikelihoodEstimator,
    Params,
    PyTree,
    Simulations,
)
from sbijax.checks import check_fraction, check_record
from sbijax.data import holds_trials
from sbijax.estimators._data import row_keys

__all__ = ["with_missing"]

Hide = Callable[[Array, PyTree], PyTree]


def with_missing(
    estimator: Estimator, *, max_rate: float = 0.6, hide: Hide | None = None
) -> Any:
    """Let an estimator answer observations with missing entries, given as NaN.

    It needs a standardizer that marks them, `networks.missing(robust())`; with
    another the loss is never finite, and `train` says so.

    Args:
        estimator: made with `standardizer=networks.missing(...)`; any neural method
            but NLE, which has to know the density of all of x.
        max_rate: every simulation of a batch has its own share of hidden entries,
            uniform from 0 to this.
        hide: how entries go missing instead, `(key, x) -> x` for one x, with NaN in
            place of what is hidden; by default each by itself.

    Returns:
        An estimator of the same kind, trained on complete simulations and asked
        with NaN in x.

    Raises:
        TypeError: the estimator is none, has no loss, or is an NLE.
        ValueError: a rate outside 0 and 1.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> marked = sj.networks.missing(sj.networks.robust())
        >>> npe = sj.with_missing(sj.make_npe(prior, standardizer=marked))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> x = theta[:, None] + jnp.zeros(3)
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, x))
        >>> posterior = sj.infer(npe, params, [0.3, jnp.nan, 0.1])
        >>> posterior.sample(jax.random.key(2), 5).shape
        (5,)

    Reference:
        Wang, Hasenauer, Schaelte. Missing data in amortized simulation-based neural
        posterior estimation, 2024.
    """
    check_record(estimator, Estimator, "estimator", "Make one with make_npe.")
    if isinstance(estimator, LikelihoodEstimator):
        raise TypeError(
            "an NLE needs the density of all entries of x. Use make_npe or make_nre, "
            "or fill what is missing with emulate."
        )
    if estimator.loss is None:
        raise TypeError("an estimator without a loss learns nothing of missing data.")
    loss, max_rate = estimator.loss, check_fraction(max_rate, "max_rate")
    hide_one = _hide_entries(max_rate) if hide is None else hide

    def hide_all(keys: Array, sims: Simulations) -> Simulations:
        return sims._replace(x=jax.vmap(hide_one)(keys, sims.x))

    def init_fn(key: Array, sims: Simulations) -> Params:
        if holds_trials(sims.x):
            raise ValueError(
                "with_missing hides entries of arrays; x holds Trials, whose mask "
                "hides rows without it."
            )
        init_key, hide_key = jax.random.split(key)
        # Statistics of complete data know no spread that comes from what is missing.
        keys = row_keys(hide_key, sims.theta)
        params = estimator.init(init_key, hide_all(keys, sims))
        example = params.stats.example
        # An example with nothing in it says that entries may be missing.
        nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), example.x)
        stats = params.stats._replace(example=example._replace(x=nothing))
        return params._replace(stats=stats)

    def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
        hide_key, loss_key = jax.random.split(key)
        keys = jax.random.split(hide_key, batch.weight.shape[0])
        return loss(params, loss_key, hide_all(keys, batch))

    return estimator._replace(init=init_fn, loss=loss_fn)


def _hide_entries(max_rate: float) -> Hide:
    def hide(key: Array, x: PyTree) -> PyTree:
        rate_key, entry_key = jax.random.split(key)
        rate = jax.random.uniform(rate_key, maxval=max_rate)
        leaves, structure = jax.tree.flatten(x)
        keys = jax.random.split(entry_key, len(leaves))
        hidden = [
            jnp.where(jax.random.bernoulli(k, rate, leaf.shape), jnp.nan, leaf)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, hidden)

    return hide
