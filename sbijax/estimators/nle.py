"""Neural likelihood estimation.

A conditional density q_phi is fitted to pairs (theta, x) by

    phi* = argmin -E_{p(theta) p(x | theta)} log q_phi(x | theta),

and a sampler draws from p(theta) q_phi*(x_o | theta).  The density lives on
y in R^K, the white residual of a linear regression of the standardised x on
theta: where they are jointly Gaussian the untrained flow is already the
likelihood.  Discrete entries of x get probabilities, which start from a logistic
regression on theta, and the continuous ones a density given them; whole numbers among
these are spread over the cells between them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    Density,
    LikelihoodEstimator,
    Network,
    Params,
    Prior,
    PyTree,
    Sampler,
    Simulations,
    Standardizer,
    Stats,
)
from sbijax.checks import check_like, check_network, check_record, describe
from sbijax.data import flatten, holds_trials
from sbijax.densities import (
    autoregressive,
    flow,
    maf,
    nsf_autoregressive,
    spline,
    unconditional,
)
from sbijax.densities._categorical import Categorical, categorical
from sbijax.estimators._counts import (
    Counts,
    cell_centres,
    find_counts,
    from_reals,
    is_count,
    jitter,
    to_reals,
)
from sbijax.estimators._data import (
    count_invalid_theta,
    observed_range,
    row_keys,
    split_example,
    unflatten,
)
from sbijax.estimators._kinds import make_kinds
from sbijax.estimators._unnormalised import unnormalised_posterior
from sbijax.losses import negative_log_density
from sbijax.networks import resnet, robust
from sbijax.networks.linear import fit_linear, from_residual, to_residual
from sbijax.networks.logistic import fit_logistic, to_logits

__all__ = ["make_nle"]


def make_nle(
    prior: Prior,
    *,
    num_categories: PyTree | None = None,
    density: Density | None = None,
    embedding: Network | None = None,
    standardizer: Standardizer | None = None,
    sampler: Sampler | None = None,
) -> LikelihoodEstimator:
    """Make a neural likelihood estimator.

    Args:
        prior: the prior of theta.
        num_categories: for discrete or mixed x, a pytree in the structure of x
            that tells how many values 0, 1, ... each leaf has, 0 for continuous
            leaves; for example `{"choice": 2, "time": 0}`.  Whole numbers without a
            small bound need none: entries that are whole in all simulations are
            spread over cells of width 1 while it learns, and have the density in
            the middle of their cell for a probability.
        density: conditional density on R^K, with K the number of continuous
            entries of x; by default a small masked autoregressive flow, of affine
            layers over one spline, or of splines where K is 1.
        embedding: network from the vector form z of theta `[D]` and the
            standardised theta (its pytree) to a context vector `[H]`, trained
            together with the density.
        standardizer: applied to continuous x, by default `robust()`.
        sampler: draws from the posterior, by default `tempered_smc()`.

    Returns:
        The estimator; `log_prob` is not normalised over theta.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: (when called) theta or x do not look like the simulations,
            `num_categories` has another structure, or the context is not a
            vector.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> nle = sj.make_nle(prior)
        >>> params = nle.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> nle.emulate(params, jax.random.key(2), 0.3).shape
        ()

    Reference:
        Papamakarios, Sterratt, Murray. Sequential neural likelihood: fast
        likelihood-free inference with autoregressive flows, 2019.
        Boelts, Lueckmann, Gao, Macke. Flexible and efficient simulation-based
        inference for models of decision-making, 2022.
        Theis, van den Oord, Bethge. A note on the evaluation of generative models,
        2016 (whole numbers spread over cells).
    """
    if embedding is None:
        embedding = resnet(32, hidden_size=64, num_blocks=3)
    standardizer = robust() if standardizer is None else standardizer
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    if density is not None:
        check_record(density, Density, "density", "Make one with densities.maf().")
    check_network(embedding, "embedding")
    check_record(
        standardizer,
        Standardizer,
        "standardizer",
        "Make one with networks.robust() or zscore().",
    )
    theta_scale, kinds = robust(), make_kinds(num_categories)

    def parts_of(x: PyTree) -> tuple[Categorical | None, Density | None]:
        """What describes the discrete entries of x, and what the continuous ones."""
        sizes, (_, continuous) = kinds.sizes(x), kinds.split(x)
        choice = categorical(sizes) if sizes else None
        num_dims = sum(leaf.size for leaf in continuous)
        if not num_dims:
            return choice, None
        return choice, _default_density(num_dims) if density is None else density

    def move(x: PyTree, how: Callable[[list], list]) -> PyTree:
        """x with other continuous leaves."""
        discrete, continuous = kinds.split(x)
        return kinds.merge(discrete, how(continuous), x)

    def is_possible(stats_x: PyTree, x: PyTree) -> Array:
        """Whether x has values that `num_categories` and the simulations allow."""
        return kinds.is_possible(x) & is_count(stats_x["counts"], kinds.split(x)[1])

    def move_at_random(counts: list[Counts], key: Array, x: PyTree) -> PyTree:
        return move(x, partial(jitter, counts, key))

    def to_vectors(stats_x: PyTree, x: PyTree) -> tuple[Array, Array, Array]:
        """Discrete entries, standardised continuous ones, the log of their slopes."""
        discrete, continuous = kinds.split(x)
        reals, log_det = to_reals(stats_x["counts"], continuous)
        targets = standardizer.forward(stats_x["scale"], reals)
        log_det += standardizer.log_det(stats_x["scale"], reals)
        return flatten(discrete), flatten(targets), log_det

    def init_fn(key: Array, sims: Simulations) -> Params:
        embedding_key, discrete_key, rest_key, cell_key = jax.random.split(key, 4)
        if holds_trials(sims.x):
            raise ValueError(
                "NLE learns the density of one trial, but x holds Trials. Simulate "
                "single trials, and give the repeated ones to iid(nle, prior)."
            )
        example, sims = split_example(sims)
        theta, x, weight = sims
        z = jax.vmap(prior.to_vector)(theta)
        counts = find_counts(kinds.split(x)[1], weight)
        keys = row_keys(cell_key, (z, x))
        moved = jax.vmap(partial(move_at_random, counts))(keys, x)
        reals, _ = to_reals(counts, kinds.split(moved)[1])
        scale = standardizer.fit(reals, weight)
        read = partial(to_vectors, {"scale": scale, "counts": counts})
        discrete, targets, _ = jax.vmap(read)(moved)
        possible = jax.vmap(kinds.is_possible)(x)
        choice, rest = parts_of(example.x)
        x_stats = {
            "scale": scale,
            "counts": counts,
            "range": observed_range(x),
            "linear": fit_linear(z, targets, weight),
        }
        if choice is not None:
            counted = jnp.where(possible, weight, 0.0)
            x_stats["logistic"] = fit_logistic(z, discrete, counted, choice.sizes)
        stats = Stats(
            example=example,
            theta=theta_scale.fit(theta, weight),
            x=x_stats,
            num_outside=count_invalid_theta(prior, sims)
            + jnp.sum((weight > 0) & ~possible),
        )
        inputs = see(stats, example.theta, z[0])
        embedding_net = embedding.init(embedding_key, *inputs)
        context = embedding.apply(embedding_net, *inputs)
        if jnp.ndim(context) != 1:
            raise ValueError(
                "embedding must map one theta to a vector [H], got "
                f"{describe(context)} for theta {describe(example.theta)}."
            )
        net = {"embedding": embedding_net}
        if choice is not None:
            net["choice"] = choice.init(discrete_key, context)
            context = choice.join(context, discrete[0])
        if rest is not None:
            net["density"] = rest.init(rest_key, targets[0], context)
        return Params(net, stats)

    def see(stats: Stats, theta: PyTree, z: Array) -> tuple[Array, PyTree]:
        """What the embedding gets: the vector form and the standardised theta."""
        return z, theta_scale.forward(stats.theta, theta)

    def embed(params: Params, theta: PyTree, z: Array) -> Array:
        """Context of the density."""
        inputs = see(params.stats, theta, z)
        return embedding.apply(params.net["embedding"], *inputs).astype(z.dtype)

    def likelihood_of(params: Params, x: PyTree) -> Callable[[PyTree, Array], Array]:
        centres = partial(cell_centres, params.stats.x["counts"])
        return density_of(params, move(x, centres))

    def density_of(params: Params, x: PyTree) -> Callable[[PyTree, Array], Array]:
        """The log-likelihood of one x whose whole numbers lie in their cells."""
        net, stats = params.net, params.stats.x
        choice, rest = parts_of(x)
        discrete, target, log_det = to_vectors(stats, x)
        linear, possible = stats["linear"], is_possible(stats, x)

        def log_likelihood(theta: PyTree, z: Array) -> Array:
            context, log_q = embed(params, theta, z), log_det + linear.log_det
            if choice is not None:
                start = to_logits(stats["logistic"], z)
                log_p = choice.log_prob(net["choice"], discrete, context, start)
                log_q += log_p
                context = choice.join(context, discrete)
            if rest is not None:
                y = to_residual(linear, target, z)
                log_q = log_q + rest.log_prob(net["density"], y, context)
            return jnp.where(possible, log_q, -jnp.inf)

        return log_likelihood

    def emulate_fn(params: Params, key: Array, theta: PyTree) -> PyTree:
        net, stats, example = params.net, params.stats.x, params.stats.example
        choice, rest = parts_of(example.x)
        theta = check_like(theta, example.theta, "theta")
        z = prior.to_vector(theta)
        context = embed(params, theta, z)
        discrete, continuous = kinds.split(example.x)
        discrete_key, rest_key = jax.random.split(key)
        if choice is not None:
            start = to_logits(stats["logistic"], z)
            values = choice.sample(net["choice"], discrete_key, context, start)
            context = choice.join(context, values)
            discrete = unflatten(values, discrete)
        if rest is not None:
            shape = (1, stats["linear"].loc.size)
            y = rest.sample(net["density"], rest_key, context, shape=shape)[0]
            target = unflatten(from_residual(stats["linear"], y, z), continuous)
            reals = standardizer.inverse(stats["scale"], target)
            continuous = from_reals(stats["counts"], reals)
        return kinds.merge(discrete, continuous, example.x)

    def log_density(params: Params, theta: PyTree, x: PyTree) -> Array:
        """log q(x | theta), or 0 for x that cannot be."""
        value = density_of(params, x)(theta, prior.to_vector(theta))
        return jnp.where(is_possible(params.stats.x, x), value, 0.0)

    log_loss = negative_log_density(log_density)

    def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
        move_one = partial(move_at_random, params.stats.x["counts"])
        keys = jax.random.split(key, len(batch.weight))
        return log_loss(
            params, key, batch._replace(x=jax.vmap(move_one)(keys, batch.x))
        )

    log_likelihood_fn, log_prob_fn, sample_fn = unnormalised_posterior(
        prior, sampler, likelihood_of
    )
    return LikelihoodEstimator(
        init=init_fn,
        loss=loss_fn,
        log_prob=log_prob_fn,
        sample=sample_fn,
        log_likelihood=log_likelihood_fn,
        emulate=emulate_fn,
    )


def _default_density(num_dims: int) -> Density:
    """What is best on held-out data; one affine dimension stays normal, however deep.

    Small layers overfit less than large ones, and sample faster.  What affine layers
    hardly learn, such as noise of two widths, a spline of their residuals does; blind
    to theta and slow it overfits little, and leaves to them what they can learn.
    """
    if num_dims == 1:
        return nsf_autoregressive(num_layers=2, hidden_size=32)
    shape = autoregressive(spline(gain=0.1), hidden_size=32, num_blocks=1)
    base = unconditional(flow(shape, num_layers=1))
    return maf(num_layers=4, hidden_size=32, base=base)
