"""Ensembles: several networks of one estimator, averaged as a mixture.

    q(theta | x) = 1/M sum_m q_m(theta | x).

By concavity of the logarithm the mixture scores at least the average of its
members; where single networks overfit in different ways it scores much better.
"""

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    Estimator,
    LikelihoodEstimator,
    Params,
    PyTree,
    RatioEstimator,
    SampleInfo,
    Simulations,
    SolverInfo,
)
from sbijax.checks import check_count, check_record

__all__ = ["ensemble"]


def ensemble(estimator: Estimator, *, num_members: int = 5) -> Estimator:
    """Train `num_members` networks at once and average their densities.

    Args:
        estimator: a trained method whose `log_prob` is a normalised density.
        num_members: number of networks M, each with its own initial weights.

    Returns:
        An estimator whose `net` has leaves `[M, ...]`; the statistics are
        shared.  `sample` takes an equal share of draws from every member.

    Raises:
        TypeError: the estimator has no loss or no normalised density.
        ValueError: fewer than one member.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> npe = sj.ensemble(sj.make_npe(prior), num_members=2)
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> theta, info = npe.sample(params, jax.random.key(2), 0.3, num_samples=7)
        >>> theta.shape
        (7,)

    Reference:
        Lakshminarayanan, Pritzel, Blundell. Simple and scalable predictive
        uncertainty estimation using deep ensembles, 2017.
        Hermans et al. A trust crisis in simulation-based inference? Your
        posterior approximations can be unfaithful, 2022.
    """
    check_record(estimator, Estimator, "estimator", "Make one with make_npe.")
    if estimator.loss is None or estimator.log_prob is None:
        raise TypeError("an ensemble needs an estimator with a loss and a density.")
    if isinstance(estimator, LikelihoodEstimator | RatioEstimator):
        raise TypeError(
            "an ensemble averages normalised densities of theta, and log_prob of "
            f"{type(estimator).__name__} is not normalised in theta. Train several and "
            "compare their posteriors."
        )
    loss, log_prob = estimator.loss, estimator.log_prob
    num_members = check_count(num_members, "num_members")

    def init_fn(key: Array, sims: Simulations) -> Params:
        keys = jax.random.split(key, num_members)
        return jax.vmap(
            lambda k: estimator.init(k, sims), out_axes=Params(net=0, stats=None)
        )(keys)

    def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
        keys = jax.random.split(key, num_members)
        losses = jax.vmap(lambda net, k: loss(params._replace(net=net), k, batch))(
            params.net, keys
        )
        return jnp.mean(losses)

    def log_prob_fn(params: Params, theta: PyTree, x: PyTree) -> Array:
        each = jax.vmap(lambda net: log_prob(params._replace(net=net), theta, x))(
            params.net
        )
        return jax.nn.logsumexp(each) - jnp.log(num_members)

    def sample_fn(
        params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, SampleInfo]:
        order_key, draw_key = jax.random.split(key)
        keys = jax.random.split(draw_key, num_members)
        share = -(-num_samples // num_members)
        theta, info = jax.vmap(
            lambda net, k: estimator.sample(
                params._replace(net=net), k, x, num_samples=share
            )
        )(params.net, keys)
        order = jax.random.permutation(order_key, num_members * share)[:num_samples]

        def mix(leaf: Array) -> Array:
            return leaf.reshape(num_members * share, *leaf.shape[2:])[order]

        # Draws add up; x is the same for all members, and so are the steps at most.
        total = jax.tree.map(lambda count: jnp.sum(count, axis=0), info)
        total = total._replace(
            num_outside=info.num_outside[0], num_entries=info.num_entries[0]
        )
        if isinstance(info, SolverInfo):
            total = total._replace(num_steps=jnp.max(info.num_steps))
        return jax.tree.map(mix, theta), total

    return Estimator(init=init_fn, loss=loss_fn, log_prob=log_prob_fn, sample=sample_fn)
