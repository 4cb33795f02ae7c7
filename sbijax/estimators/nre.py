"""Neural ratio estimation.

A classifier that tells pairs of the joint p(theta, x) from pairs of the product
p(theta) p(x) has learned

    log r(theta, x) = log p(x | theta) - log p(x),

up to a function of x for some losses, and a sampler draws from
p(theta) r(theta, x_o).  The logit is a network plus log s(theta, x), the ratio of
the posterior to the prior under a linear regression of z = to_vector(theta) on the
standardised x: where theta and x are jointly Gaussian there is nothing left to
learn.

Thetas from the prior are hardly ever wrong by little, so a narrow posterior leaves
nothing to learn its shape from.  A share of the wrong thetas is therefore drawn from
the posterior under the regression, and the losses see

    log p(theta | x) - log m(theta | x) = log r - log(1 - share + share s),

where m is the mixture of that posterior and of the prior.

Reference:
    Gutmann, Hyvarinen. Noise-contrastive estimation of unnormalized statistical
    models, with applications to natural image statistics, 2012 (why noise should be
    close to the data).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sbijax.base import (
    Array,
    Network,
    Params,
    Prior,
    PyTree,
    RatioEstimator,
    Sampler,
    Simulations,
    Standardizer,
    Stats,
)
from sbijax.checks import check_network, check_record, describe
from sbijax.estimators._data import (
    count_invalid_theta,
    features_of,
    observed_range,
    split_example,
)
from sbijax.estimators._latent import default_embedding
from sbijax.estimators._relevance import fit_relevance, weigh
from sbijax.estimators._unnormalised import unnormalised_posterior
from sbijax.losses import RatioLoss, nre_b
from sbijax.networks import flatten as join
from sbijax.networks import resnet, robust
from sbijax.networks.linear import (
    LinearStats,
    fit_linear,
    from_residual,
    to_residual,
)
from sbijax.noise import normal, uniform

__all__ = ["make_nre"]


def make_nre(
    prior: Prior,
    *,
    loss: RatioLoss | None = None,
    classifier: Network | None = None,
    embedding_theta: Network | None = None,
    embedding_x: Network | None = None,
    standardizer: Standardizer | None = None,
    sampler: Sampler | None = None,
) -> RatioEstimator:
    """Make a neural ratio estimator.

    Args:
        prior: the prior that theta was drawn from; training draws wrong thetas from it.
        loss: the objective, by default `losses.nre_b()`; also `nre_a`, `nre_c`
            and `balanced`.
        classifier: network from the embedded theta and the embedded x to one
            logit `[1]`, by default a residual network.
        embedding_theta: network from the vector form z of theta `[D]` and the
            standardised theta (its pytree) to a vector; by default they are
            joined. It is applied to the wrong thetas too, nine for each right one by
            default.
        embedding_x: network from one standardised x (its pytree) to a vector;
            by default the leaves are joined, each entry scaled by how much it has to
            do with theta.
        standardizer: applied to x before the embedding, by default `robust()`.
        sampler: draws from the posterior, by default `tempered_smc()`.

    Returns:
        The estimator; `log_prob` is not normalised over theta.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: (when called) theta or x do not look like the simulations,
            or the classifier does not return one logit.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> nre = sj.make_nre(prior, loss=sj.losses.nre_c(num_atoms=5))
        >>> params = nre.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> nre.log_ratio(params, 0.2, 0.3).shape
        ()

    Reference:
        Hermans, Begy, Louppe. Likelihood-free MCMC with amortized approximate
        ratio estimators, 2020.
        Miller, Weniger, Forre. Contrastive neural ratio estimation, 2022.
    """
    loss = nre_b() if loss is None else loss
    if classifier is None:
        classifier = resnet(1, hidden_size=64, num_blocks=2, zero_output=True)
    embedding_theta = join() if embedding_theta is None else embedding_theta
    weighs = embedding_x is None
    embedding_x = default_embedding(join()) if embedding_x is None else embedding_x
    standardizer = robust() if standardizer is None else standardizer
    check_record(prior, Prior, "prior", "Make one with make_prior.")
    check_network(classifier, "classifier")
    check_network(embedding_theta, "embedding_theta")
    check_network(embedding_x, "embedding_x")
    check_record(
        standardizer,
        Standardizer,
        "standardizer",
        "Make one with networks.robust() or zscore().",
    )
    theta_scale = robust()

    def read(stats_x: PyTree, x: PyTree) -> PyTree:
        """What the embedding and the regression get of one x."""
        value = standardizer.forward(stats_x["scale"], x)
        return weigh(value, stats_x["relevance"]) if weighs else value

    def init_fn(key: Array, sims: Simulations) -> Params:
        theta_key, x_key, classifier_key = jax.random.split(key, 3)
        example, sims = split_example(sims)
        theta, x, weight = sims
        z = jax.vmap(prior.to_vector)(theta)
        scale = standardizer.fit(x, weight)
        stats_x = {"scale": scale, "range": observed_range(x)}
        if weighs:
            values = jax.vmap(partial(standardizer.forward, scale))(x)
            stats_x["relevance"] = fit_relevance(values, x, z, weight)
        values = jax.vmap(partial(read, stats_x))(x)
        stats = Stats(
            example=example,
            theta={
                "scale": theta_scale.fit(theta, weight),
                "linear": fit_linear(jax.vmap(features_of)(values), z, weight),
            },
            x=stats_x,
            num_outside=count_invalid_theta(prior, sims),
        )
        inputs = see_theta(stats, example.theta, z[0])
        value = read(stats_x, example.x)
        net = {
            "theta": embedding_theta.init(theta_key, *inputs),
            "x": embedding_x.init(x_key, value),
        }
        of_theta = embedding_theta.apply(net["theta"], *inputs)
        of_x = embedding_x.apply(net["x"], value)
        net["classifier"] = classifier.init(classifier_key, of_theta, of_x)
        logit = classifier.apply(net["classifier"], of_theta, of_x)
        if jnp.shape(logit) != (1,):
            raise ValueError(
                "classifier must map an embedded theta and an embedded x to one "
                f"logit [1], got {describe(logit)}."
            )
        return Params(net, stats)

    def see_theta(stats: Stats, theta: PyTree, z: Array) -> tuple[Array, PyTree]:
        """What the embedding gets: the vector form and the standardised theta."""
        scaled = theta_scale.forward(stats.theta["scale"], theta)
        return z, scaled

    def embed_theta(
        params: Params, theta: PyTree, z: Array
    ) -> tuple[PyTree, Array, Array]:
        """Embedding, vector form, and log-density of the prior there."""
        inputs = see_theta(params.stats, theta, z)
        of_theta = embedding_theta.apply(params.net["theta"], *inputs)
        return of_theta, z, prior.log_prob(theta) + prior.log_det(z)

    def embed_x(params: Params, x: PyTree) -> tuple[PyTree, Array]:
        """Embedding, and features of the regression."""
        value = read(params.stats.x, x)
        return embedding_x.apply(params.net["x"], value), features_of(value)

    def logit_terms(
        params: Params, of_theta: tuple, of_x: tuple
    ) -> tuple[Array, Array]:
        """What the network says, and the ratio of the regression that it adds to."""
        (u, z, log_prior), (v, features) = of_theta, of_x
        linear = params.stats.theta["linear"]
        y = to_residual(linear, z, features)
        start = jnp.sum(norm.logpdf(y)) + linear.log_det - log_prior
        return classifier.apply(params.net["classifier"], u, v)[0], start

    def draw_wrong(
        key: Array,
        linear: LinearStats,
        features: Array,
        shape: tuple[int, int],
        local_share: float,
    ) -> Array:
        """z of m `[B, K, D]` for the features `[B, F]` of each x."""
        prior_key, share_key, noise_key = jax.random.split(key, 3)
        keys = jax.random.split(prior_key, shape)
        z = jax.vmap(jax.vmap(lambda key: prior.to_vector(prior.sample(key))))(keys)
        if local_share == 0.0:
            return z
        noise = normal(noise_key, z.shape, z.dtype)
        of_one_x = jax.vmap(partial(from_residual, linear), (0, None))
        near = jax.vmap(of_one_x)(noise, features)
        is_local = uniform(share_key, shape, z.dtype) < local_share
        return jnp.where(is_local[..., None], near, z)

    def contrast(
        params: Params,
        key: Array,
        theta: PyTree,
        x: PyTree,
        *,
        num_wrong: int,
        local_share: float,
    ) -> Array:
        right = jax.vmap(prior.to_vector)(theta)
        of_x = jax.vmap(partial(embed_x, params))(x)
        linear, shape = params.stats.theta["linear"], (len(right), num_wrong)
        wrong = draw_wrong(key, linear, of_x[1], shape, local_share)

        def ratio(of_one_x: tuple, z: Array) -> Array:
            # Of the right z too: at the bounds a theta may have no finite density.
            of_theta = embed_theta(params, prior.from_vector(z), z)
            learned, start = logit_terms(params, of_theta, of_one_x)
            return learned + _relative_to_mixture(start, local_share)

        z = jnp.concatenate([right[:, None], wrong], axis=1)
        return jax.vmap(jax.vmap(ratio, (None, 0)))(of_x, z)

    def ratio_of(params: Params, x: PyTree) -> Callable[[PyTree, Array], Array]:
        of_x = embed_x(params, x)

        def log_ratio(theta: PyTree, z: Array) -> Array:
            learned, start = logit_terms(params, embed_theta(params, theta, z), of_x)
            return learned + start

        return log_ratio

    log_ratio_fn, log_prob_fn, sample_fn = unnormalised_posterior(
        prior, sampler, ratio_of
    )
    return RatioEstimator(
        init=init_fn,
        loss=loss(contrast),
        log_prob=log_prob_fn,
        sample=sample_fn,
        log_ratio=log_ratio_fn,
    )


def _relative_to_mixture(log_ratio: Array, share: float) -> Array:
    """log s - log(1 - share + share s), for log s; finite where s is not."""
    if share == 0.0:
        return log_ratio
    log_odds = math.log(share) - math.log1p(-share)
    return jax.nn.log_sigmoid(log_ratio + log_odds) - math.log(share)
