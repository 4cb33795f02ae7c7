"""The space in which amortized posteriors are learned: what NPE, FMPE, NPSE share.

A model learns y in R^D given a context, where y is the white residual of a linear
regression of z = to_vector(theta) on the standardised x, and the context is an
embedding of x.  Draws never leave the prior's support, and where theta and x are
jointly Gaussian the posterior of y is a standard normal before any training.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    InitFn,
    LogProbFn,
    Network,
    Params,
    Prior,
    PyTree,
    SampleFn,
    Simulations,
    Standardizer,
    Stats,
)
from sbijax.checks import (
    check_count,
    check_like,
    check_network,
    check_record,
    describe,
)
from sbijax.data import holds_trials, is_trials
from sbijax.estimators._data import (
    count_invalid_theta,
    features_of,
    num_entries,
    num_outside,
    observed_range,
    split_example,
)
from sbijax.estimators._relevance import (
    fit_relevance,
    fit_relevance_beyond,
    weigh,
    with_scales,
)
from sbijax.networks import deep_set, robust
from sbijax.networks.linear import fit_linear, from_residual, predict, to_residual

__all__ = ["Latent", "default_embedding", "make_latent"]


class Latent(NamedTuple):
    """Functions from a model of y to those of an estimator of theta.

    `init(init_model)` for `init_model(key, y, context) -> net`;
    `encode(params, theta, x) -> (y [D], context)` for a theta inside the support;
    `log_density(log_q)` and `log_prob(log_q)` for `log_q(net, y, context) ->
    scalar`, the first for a theta inside the support, the second for any;
    `sample(draw)` for `draw(net, key, context, *, shape) -> (y [S, D], info)`; and
    `see(params, x) -> (context, features)`, the latter those of the regression.
    """

    init: Callable[[Callable[[Array, Array, Array], PyTree]], InitFn]
    encode: Callable[[Params, PyTree, PyTree], tuple[Array, Array]]
    log_density: Callable[[Callable[[PyTree, Array, Array], Array]], LogProbFn]
    log_prob: Callable[[Callable[[PyTree, Array, Array], Array]], LogProbFn]
    sample: Callable[[Callable[..., tuple[Array, Any]]], SampleFn]
    see: Callable[[Params, PyTree], tuple[Array, Array]]


def make_latent(
    prior: Prior,
    embedding: Network | None,
    standardizer: Standardizer | None,
    *,
    of_entries: Network,
) -> Latent:
    """Check the parts that amortized posteriors have in common, and put in defaults.

    Args:
        prior: the prior that theta was drawn from.
        embedding: network from one standardised x (its pytree) to a context
            vector `[H]`.
        standardizer: applied to x before the embedding, by default `robust()`.
        of_entries: the embedding by default, of the joined entries of x and of what
            the regression predicts, each scaled by its relevance; for `Trials` it is
            a `deep_set`.

    Raises:
        TypeError: an argument is not of its kind.
    """
    standardizer = robust() if standardizer is None else standardizer
    weighs = embedding is None
    embedding = default_embedding(of_entries) if embedding is None else embedding
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    check_network(embedding, "embedding")
    check_record(
        standardizer,
        Standardizer,
        "standardizer",
        "Make one with networks.robust() or zscore().",
    )

    def regressors(stats_x: PyTree, value: PyTree) -> Array:
        """What the regression gets of one standardised x."""
        return features_of(weigh(value, stats_x["relevance"]) if weighs else value)

    def look(stats: Stats, value: PyTree, features: Array) -> PyTree:
        """What the embedding gets: by default what the regression predicts too."""
        if not weighs or holds_trials(value):
            return value
        seen = value, predict(stats.theta, features)
        return weigh(seen, stats.x["relevance_beyond"])

    def init(init_model: Callable[[Array, Array, Array], PyTree]) -> InitFn:
        def init_fn(key: Array, sims: Simulations) -> Params:
            embedding_key, model_key = jax.random.split(key)
            example, sims = split_example(sims)
            theta, x, weight = sims
            z = jax.vmap(prior.to_vector)(theta)
            scale = standardizer.fit(x, weight)
            stats_x = {"scale": scale, "range": observed_range(x)}
            values = jax.vmap(partial(standardizer.forward, scale))(x)
            if weighs:
                stats_x["relevance"] = fit_relevance(values, x, z, weight)
            features = jax.vmap(partial(regressors, stats_x))(values)
            linear = fit_linear(features, z, weight)
            if weighs:
                predicted = jax.vmap(partial(predict, linear))(features)
                rest = jax.vmap(partial(to_residual, linear))(z, features)
                stats_x["relevance_beyond"] = fit_relevance_beyond(
                    values, x, z, weight, predicted, rest
                )
            stats = Stats(
                example=example,
                theta=linear,
                x=stats_x,
                num_outside=count_invalid_theta(prior, sims),
            )
            value = standardizer.forward(scale, example.x)
            seen = look(stats, value, regressors(stats_x, value))
            embedding_net = embedding.init(embedding_key, seen)
            context = embedding.apply(embedding_net, seen)
            if jnp.ndim(context) != 1:
                raise ValueError(
                    "embedding must map one x to a vector [H], got "
                    f"{describe(context)} for x {describe(example.x)}."
                )
            net = {
                "embedding": embedding_net,
                "density": init_model(model_key, z[0], context),
            }
            return Params(net, stats)

        return init_fn

    def see(params: Params, x: PyTree) -> tuple[Array, Array]:
        value = standardizer.forward(params.stats.x["scale"], x)
        features = regressors(params.stats.x, value)
        seen = look(params.stats, value, features)
        context = embedding.apply(params.net["embedding"], seen)
        return context.astype(features.dtype), features

    def encode_with_vector(
        params: Params, theta: PyTree, x: PyTree
    ) -> tuple[Array, Array, Array]:
        context, features = see(params, x)
        z = prior.to_vector(theta)
        return to_residual(params.stats.theta, z, features), context, z

    def encode(params: Params, theta: PyTree, x: PyTree) -> tuple[Array, Array]:
        return encode_with_vector(params, theta, x)[:2]

    def log_density(log_q: Callable[[PyTree, Array, Array], Array]) -> LogProbFn:
        def log_density_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
            y, context, z = encode_with_vector(params, theta, x)
            log_det = params.stats.theta.log_det - prior.log_det(z)
            return log_q(params.net["density"], y, context) + log_det

        return log_density_fn

    def log_prob(log_q: Callable[[PyTree, Array, Array], Array]) -> LogProbFn:
        inside_fn = log_density(log_q)

        def log_prob_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
            example = params.stats.example
            theta = check_like(theta, example.theta, "theta")
            x = check_like(x, example.x, "x")
            inside = prior.log_prob(theta) > -jnp.inf
            safe = jax.tree.map(
                lambda leaf, default: jnp.where(inside, leaf, default),
                theta,
                example.theta,
            )
            return jnp.where(inside, inside_fn(params, safe, x), -jnp.inf)

        return log_prob_fn

    def sample(draw: Callable[..., tuple[Array, Any]]) -> SampleFn:
        def sample_fn(
            params: Params, key: Array, x: PyTree, *, num_samples: int
        ) -> tuple[PyTree, Any]:
            num_samples = check_count(num_samples, "num_samples")
            x = check_like(x, params.stats.example.x, "x")
            context, features = see(params, x)
            y, info = draw(
                params.net["density"], key, context, shape=(num_samples, prior.num_dims)
            )
            z = jax.vmap(lambda y: from_residual(params.stats.theta, y, features))(y)
            info = info._replace(
                num_outside=num_outside(x, params.stats.x["range"]),
                num_entries=num_entries(x),
            )
            return jax.vmap(prior.from_vector)(z), info

        return sample_fn

    return Latent(init, encode, log_density, log_prob, sample, see)


def default_embedding(of_entries: Network) -> Network:
    """The network given, but of `Trials` a `deep_set`, which knows no order."""
    of_rows, of_entries = deep_set(32), with_scales(of_entries)

    def choose(x: PyTree) -> Network:
        if is_trials(x):
            return of_rows
        if holds_trials(x):
            raise ValueError(
                "x holds Trials among other things: give an embedding of x, such as "
                f"networks.fuse of one network per entry. Got {describe(x)}."
            )
        return of_entries

    return Network(
        init=lambda key, x: choose(x).init(key, x),
        apply=lambda params, x: choose(x).apply(params, x),
    )
