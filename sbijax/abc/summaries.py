"""Summaries of x that distances compare.

The posterior mean is the summary that loses least for point estimates, so a good
approximation of it, linear or by a trained network, is a good summary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, Estimator, Params, Prior, PyTree
from sbijax.checks import check_count, check_record
from sbijax.data import flatten, holds_trials
from sbijax.networks import robust
from sbijax.networks.linear import fit_linear

__all__ = ["Summary", "as_summary", "posterior_mean", "semi_automatic"]


class Summary(NamedTuple):
    """What of x a distance sees.

    `fit(z, x, weight) -> stats` for vector forms of theta `[N, D]`, x with leaves
    `[N, ...]` and weights `[N]`, and `apply(stats, x) -> s`, a pytree, for one x.
    """

    fit: Callable[[Array, PyTree, Array], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]


def semi_automatic(
    features: Callable[[PyTree], PyTree] | None = None,
) -> Summary:
    """The posterior mean of theta's vector form by linear regression on features.

    Fitted in `init`; ten simulations or more for each feature are needed, and without
    them the summary is a constant.

    Args:
        features: function of one x to a pytree of arrays; by default the entries of
            x, robustly scaled, and their squares.

    Returns:
        A summary `[D]`.

    Raises:
        TypeError: `features` is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.abc import semi_automatic
        >>> summary, z = semi_automatic(), jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> stats = summary.fit(z, 3.0 * z, jnp.ones(50))
        >>> summary.apply(stats, jnp.array([1.5])).shape
        (1,)

    Reference:
        Fearnhead, Prangle. Constructing summary statistics for approximate Bayesian
        computation: semi-automatic approximate Bayesian computation, 2012.
    """
    if features is not None and not callable(features):
        raise TypeError(
            f"features must be a function of one x, got {type(features).__name__}."
        )
    scaler = robust()

    def raw(x: PyTree) -> Array:
        found = x if features is None else features(x)
        if holds_trials(found):
            raise ValueError(
                "semi_automatic regresses on vectors, but x holds Trials. Give "
                "features of them, or distance=abc.wasserstein()."
            )
        return flatten(found)

    def expand(scale: PyTree, values: Array) -> Array:
        values = scaler.forward(scale, values)
        return jnp.concatenate([values, values**2]) if features is None else values

    def fit(z: Array, x: PyTree, weight: Array) -> PyTree:
        values = jax.vmap(raw)(x)
        scale = scaler.fit(values, weight)
        rows = jax.vmap(lambda one: expand(scale, one))(values)
        return {"scale": scale, "linear": fit_linear(rows, z, weight)}

    def apply(stats: PyTree, x: PyTree) -> Array:
        linear = stats["linear"]
        return linear.loc + linear.scale * (
            expand(stats["scale"], raw(x)) @ linear.slope
        )

    return Summary(fit, apply)


def posterior_mean(
    estimator: Estimator, params: Params, prior: Prior, *, num_draws: int = 32
) -> Summary:
    """The posterior mean of theta's vector form, by a trained amortized estimator.

    It brings whatever embedding was trained with it, for images, series and sets.

    Args:
        estimator: a trained method that draws fast, such as `make_npe`.
        params: its parameters.
        prior: the prior of theta.
        num_draws: draws whose mean is taken, from the same noise for every x.

    Returns:
        A summary `[D]`.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: no draws.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> npe = sj.make_npe(prior)
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> summary = sj.abc.posterior_mean(npe, params, prior)
        >>> summary.apply({}, jax.numpy.array(0.3)).shape
        (1,)

    Reference:
        Jiang, Wu, Zheng, Wong. Learning summary statistic for approximate Bayesian
        computation via deep neural network, 2017.
    """
    check_record(estimator, Estimator, "estimator", "Make one with make_npe.")
    check_record(params, Params, "params", "Get them from train.")
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    num_draws = check_count(num_draws, "num_draws")

    def apply(stats: PyTree, x: PyTree) -> Array:
        theta, _ = estimator.sample(params, jax.random.key(0), x, num_samples=num_draws)
        return jnp.mean(jax.vmap(prior.to_vector)(theta), axis=0)

    return Summary(_nothing_to_fit, apply)


def as_summary(value: Summary | Callable[[PyTree], PyTree] | None) -> Summary:
    """A `Summary`, or a function of one x made one; None keeps x as it is.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(value, Summary):
        return value
    if value is None:
        return Summary(_nothing_to_fit, lambda stats, x: x)
    if not callable(value):
        raise TypeError(
            "summary must be a Summary, such as abc.semi_automatic(), or a function "
            f"of one x; got {type(value).__name__}."
        )
    return Summary(_nothing_to_fit, lambda stats, x: value(x))


def _nothing_to_fit(z: Array, x: PyTree, weight: Array) -> dict[str, Array]:
    return {}
