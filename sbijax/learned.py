"""A trained likelihood or ratio as a part of a numpyro model.

What was learned on single simulations can stand in any model: subjects with
their own theta under a population prior, regressions on theta, mixtures.
numpyro's NUTS and SVI do the rest.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from sbijax.base import Array, LikelihoodEstimator, Params, PyTree, RatioEstimator
from sbijax.checks import check_record, describe

__all__ = ["LearnedLikelihood", "learned_factor"]


class LearnedLikelihood(dist.Distribution):
    """The distribution of x given theta that an NLE has learned.

    Args:
        estimator: for example from `make_nle`; its x is one array.
        params: its trained parameters.
        theta: pytree with leaves `[*batch, ...]` in the structure of the prior
            that the estimator was trained on.

    Raises:
        TypeError: the estimator has no likelihood, or its x is not one array.
        ValueError: theta has another structure or shape than the simulations.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 3.0))
        >>> theta = 3.0 * jax.random.normal(jax.random.key(0), (100,))
        >>> nle = sj.make_nle(prior)
        >>> params = nle.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> def model(x):
        ...     centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("subjects", 4):
        ...         theta = numpyro.sample("theta", dist.Normal(centre, 1.0))
        ...         numpyro.sample("x", sj.LearnedLikelihood(nle, params, theta), obs=x)
        >>> LearnedLikelihood(nle, params, jnp.zeros(4)).log_prob(jnp.ones(4)).shape
        (4,)
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("params", "theta")
    pytree_aux_fields = ("estimator",)

    def __init__(
        self, estimator: LikelihoodEstimator, params: Params, theta: PyTree
    ) -> None:
        check_record(
            estimator, LikelihoodEstimator, "estimator", "Make one with make_nle."
        )
        example = params.stats.example
        if jax.tree.structure(example.x) != jax.tree.structure(0):
            raise TypeError(
                "a numpyro site holds one array, but x of this estimator is "
                f"{describe(example.x)}. Use learned_factor."
            )
        self.estimator, self.params = estimator, params
        self.theta = jax.tree.map(jnp.asarray, theta)
        batch_shape = _batch_shape(self.theta, example.theta, "theta")
        super().__init__(batch_shape, jnp.shape(example.x))

    @property
    def support(self) -> Any:
        """All real arrays of the shape of one x."""
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw x `[*sample_shape, *batch, ...]` from the emulator."""
        shape = sample_shape + self.batch_shape
        size = int(jnp.prod(jnp.array(shape, int)))
        theta = _flat_batch(self.theta, self.params.stats.example.theta, shape)
        x = jax.vmap(lambda k, t: self.estimator.emulate(self.params, k, t))(
            jax.random.split(key, size), theta
        )
        return x.reshape(shape + self.event_shape)

    def log_prob(self, value: Array) -> Array:
        """Log-likelihood `[*batch]` of x `[*batch, ...]`, broadcast with theta."""
        example = self.params.stats.example
        x_shape = _batch_shape(value, example.x, "x")
        shape = jnp.broadcast_shapes(x_shape, self.batch_shape)
        theta = _flat_batch(self.theta, example.theta, shape)
        x = _flat_batch(value, example.x, shape)
        each = jax.vmap(lambda t, v: self.estimator.log_likelihood(self.params, t, v))
        return each(theta, x).reshape(shape)


def learned_factor(
    name: str,
    estimator: LikelihoodEstimator | RatioEstimator,
    params: Params,
    theta: PyTree,
    x: PyTree,
) -> None:
    """Add the learned log-likelihood or log-ratio of x to a numpyro model.

    Args:
        name: of the factor site.
        estimator: from `make_nle` or `make_nre`.
        params: its trained parameters.
        theta: pytree with leaves `[*batch, ...]`.
        x: pytree with leaves `[*batch, ...]`; the two batches are broadcast, so
            trials `[T, J, ...]` go with the thetas `[J, ...]` of subjects.

    Raises:
        TypeError: the estimator has learned neither.
        ValueError: theta or x have another structure or shape than the
            simulations.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> nre = sj.make_nre(prior)
        >>> params = nre.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> def model(x):
        ...     theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        ...     sj.learned_factor("x", nre, params, theta, x)
    """
    if isinstance(estimator, LikelihoodEstimator):
        score = estimator.log_likelihood
    elif isinstance(estimator, RatioEstimator):
        score = estimator.log_ratio
    else:
        raise TypeError(
            "a factor needs a learned likelihood or ratio, got "
            f"{type(estimator).__name__}. Make one with make_nle or make_nre."
        )
    example = params.stats.example
    theta, x = jax.tree.map(jnp.asarray, (theta, x))
    shape = jnp.broadcast_shapes(
        _batch_shape(theta, example.theta, "theta"), _batch_shape(x, example.x, "x")
    )
    each = jax.vmap(lambda t, v: score(params, t, v))(
        _flat_batch(theta, example.theta, shape), _flat_batch(x, example.x, shape)
    )
    numpyro.factor(name, each.reshape(shape))


def _batch_shape(tree: PyTree, example: PyTree, name: str) -> tuple[int, ...]:
    """The common leading axes of all leaves, beyond those of `example`."""
    message = (
        f"{name} must look like the simulations behind common leading axes: got "
        f"{describe(tree)}, expected {describe(example)}."
    )
    if jax.tree.structure(tree) != jax.tree.structure(example):
        raise ValueError(message)
    shapes = set()
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(example), strict=True):
        num_batch = jnp.ndim(leaf) - jnp.ndim(like)
        if num_batch < 0 or jnp.shape(leaf)[num_batch:] != jnp.shape(like):
            raise ValueError(message)
        shapes.add(jnp.shape(leaf)[:num_batch])
    if len(shapes) != 1:
        raise ValueError(message)
    return shapes.pop()


def _flat_batch(tree: PyTree, example: PyTree, shape: tuple[int, ...]) -> PyTree:
    """Leaves broadcast to the batch shape, which becomes one axis."""

    def spread(leaf: Array, like: Array) -> Array:
        event = jnp.shape(like)
        return jnp.broadcast_to(leaf, shape + event).reshape(-1, *event)

    return jax.tree.map(spread, tree, example)
