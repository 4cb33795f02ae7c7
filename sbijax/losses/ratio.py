"""Objectives of neural ratio estimation.

A classifier tells pairs of the joint p(theta, x) from pairs of m(theta | x) p(x), and
its logit is the log of r(theta, x) = p(theta | x) / m(theta | x).  m is known: the
prior, or a mixture of it and of a density that is closer to the posterior.  The
objectives differ in how many thetas compete for one x:

    A     L = -E log s(r(theta, x)) - E log s(-r(theta', x)),
    B     L = -E log [r_0 / sum_{k=0}^{K-1} r_k],
    C     L = -p_0 E log q(0 | theta_1:K, x) - p_K E log q(1 | theta, theta_1:K-1, x),

with theta', theta_k from m, s the sigmoid, p_0 = 1 / (1 + gamma), p_K = 1 - p_0, and
q(0) = 1 / (1 + gamma / K sum_k r_k), q(k) = gamma / K r_k q(0).  B knows r only up to
a function of x, A and C know it all.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from sbijax.base import Array, LossFn, Params, PyTree, Simulations
from sbijax.checks import check_count, check_positive
from sbijax.data import fill_zero_weight

__all__ = ["Contrast", "RatioLoss", "balanced", "nre_a", "nre_b", "nre_c"]


class Contrast(Protocol):
    """Log-ratios of the right theta and of wrong ones, for each x of a batch."""

    def __call__(
        self,
        params: Params,
        key: Array,
        theta: PyTree,
        x: PyTree,
        *,
        num_wrong: int,
        local_share: float,
    ) -> Array:
        """Return log p(theta | x) / m(theta | x) `[B, 1 + num_wrong]`.

        The first is that of theta, the others are those of draws of m: each comes from
        the prior, or with probability `local_share` from near the posterior.
        """
        ...


RatioLoss = Callable[[Contrast], LossFn]

_LOCAL_SHARE = 0.5


def nre_a(*, num_negatives: int = 1, local_share: float = _LOCAL_SHARE) -> RatioLoss:
    """Binary cross-entropy of right and of wrong pairs.

    Args:
        num_negatives: wrong thetas for each x, averaged over.
        local_share: share of the wrong thetas that are drawn near the posterior, below
            1; with 0 all are from the prior, as in the paper.

    Returns:
        A function from a `Contrast` to a loss.

    Raises:
        ValueError: fewer than one negative, or a share outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import nre_a
        >>> batch = Simulations(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def zeros(params, key, theta, x, *, num_wrong, local_share):
        ...     return jnp.zeros((len(x), 1 + num_wrong))
        >>> loss = nre_a()(zeros)
        >>> round(float(loss(params, jax.random.key(0), batch)), 4)  # 2 log 2
        1.3863

    Reference:
        Hermans, Begy, Louppe. Likelihood-free MCMC with amortized approximate
        ratio estimators, 2020.
    """

    def score(positive: Array, negative: Array, weight: Array) -> Array:
        joint = jax.nn.log_sigmoid(positive)
        product = jnp.mean(jax.nn.log_sigmoid(-negative), axis=1)
        return -jnp.sum(weight * (joint + product))

    return _make_loss(score, check_count(num_negatives, "num_negatives"), local_share)


def balanced(
    *, num_negatives: int = 1, strength: float = 100.0, local_share: float = 0.0
) -> RatioLoss:
    """Binary cross-entropy that is held to balance, and so errs on the wide side.

    Adds strength (E s(r(theta, x)) + E s(r(theta', x)) - 1)^2 to `nre_a`.

    Args:
        num_negatives: wrong thetas for each x, averaged over.
        strength: factor of the penalty.
        local_share: as that of `nre_a`; above 0, to err is to be closer to that
            density, which need not be wider than the posterior.

    Returns:
        A function from a `Contrast` to a loss.

    Raises:
        ValueError: fewer than one negative, or a share outside [0, 1).

    Example:
        >>> from sbijax.losses import balanced
        >>> loss = balanced(strength=10.0)

    Reference:
        Delaunoy, Hermans, Rozet, Wehenkel, Louppe. Towards reliable
        simulation-based inference with balanced neural ratio estimation, 2022.
    """

    def score(positive: Array, negative: Array, weight: Array) -> Array:
        joint = jax.nn.log_sigmoid(positive)
        product = jnp.mean(jax.nn.log_sigmoid(-negative), axis=1)
        shares = jax.nn.sigmoid(positive) + jnp.mean(jax.nn.sigmoid(negative), axis=1)
        balance = jnp.sum(weight * shares) - jnp.sum(weight)
        return -jnp.sum(weight * (joint + product)) + strength * balance**2

    return _make_loss(score, check_count(num_negatives, "num_negatives"), local_share)


def nre_b(*, num_atoms: int = 10, local_share: float = _LOCAL_SHARE) -> RatioLoss:
    """Cross-entropy of finding the right theta among `num_atoms`.

    Args:
        num_atoms: competing thetas K, the right one included, at least 2.
        local_share: share of the wrong thetas that are drawn near the posterior, below
            1; with 0 all are from the prior, as in the paper.

    Returns:
        A function from a `Contrast` to a loss.

    Raises:
        ValueError: fewer than two atoms, or a share outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import nre_b
        >>> batch = Simulations(jnp.zeros(9), jnp.zeros(9), jnp.ones(9))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def zeros(params, key, theta, x, *, num_wrong, local_share):
        ...     return jnp.zeros((len(x), 1 + num_wrong))
        >>> loss = nre_b(num_atoms=4)(zeros)
        >>> round(float(loss(params, jax.random.key(0), batch)), 4)  # log 4
        1.3863

    Reference:
        Durkan, Murray, Papamakarios. On contrastive learning for
        likelihood-free inference, 2020.
    """

    def score(positive: Array, negative: Array, weight: Array) -> Array:
        everything = jnp.concatenate([positive[:, None], negative], axis=1)
        return -jnp.sum(weight * (positive - jax.nn.logsumexp(everything, axis=1)))

    num_wrong = check_count(num_atoms, "num_atoms", least=2) - 1
    return _make_loss(score, num_wrong, local_share)


def nre_c(
    *, num_atoms: int = 10, gamma: float = 1.0, local_share: float = _LOCAL_SHARE
) -> RatioLoss:
    """Cross-entropy of finding the right theta among `num_atoms`, or none.

    Args:
        num_atoms: competing thetas K, at least 1.
        gamma: odds that one of them is right; sets how strongly the ratio's
            scale is held.
        local_share: share of the wrong thetas that are drawn near the posterior, below
            1; with 0 all are from the prior, as in the paper.

    Returns:
        A function from a `Contrast` to a loss.

    Raises:
        ValueError: fewer than one atom, odds that are not positive, or a share
            outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import nre_c
        >>> batch = Simulations(jnp.zeros(9), jnp.zeros(9), jnp.ones(9))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def zeros(params, key, theta, x, *, num_wrong, local_share):
        ...     return jnp.zeros((len(x), 1 + num_wrong))
        >>> loss = nre_c(num_atoms=1)(zeros)
        >>> round(float(loss(params, jax.random.key(0), batch)), 4)  # log 2
        0.6931

    Reference:
        Miller, Weniger, Forre. Contrastive neural ratio estimation, 2022.
    """
    num_atoms = check_count(num_atoms, "num_atoms")
    gamma = check_positive(gamma, "gamma")
    log_odds = jnp.log(gamma / num_atoms)

    def score(positive: Array, negative: Array, weight: Array) -> Array:
        def log_none(log_ratios: Array) -> Array:
            total = log_odds + jax.nn.logsumexp(log_ratios, axis=1)
            return -jax.nn.softplus(total)

        everything = jnp.concatenate([positive[:, None], negative[:, 1:]], axis=1)
        found = log_odds + positive + log_none(everything)
        mean = (log_none(negative) + gamma * found) / (1.0 + gamma)
        return -jnp.sum(weight * mean)

    return _make_loss(score, num_atoms, local_share)


def _make_loss(
    score: Callable[[Array, Array, Array], Array], num_wrong: int, local_share: float
) -> RatioLoss:
    """A loss from a score of right `[B]` and wrong `[B, K]` log-ratios.

    The weights that the score gets sum to 1, or are all 0.
    """
    if not 0.0 <= local_share < 1.0:
        raise ValueError(
            f"local_share must be at least 0 and below 1, got {local_share}. Without "
            "any theta from the prior nothing is learned far from the posterior."
        )

    def loss_of(contrast: Contrast) -> LossFn:
        def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
            theta, x, weight = fill_zero_weight(batch, params.stats.example)
            values = contrast(
                params, key, theta, x, num_wrong=num_wrong, local_share=local_share
            )
            total = jnp.sum(weight)
            share = weight / jnp.where(total > 0, total, 1.0)
            return score(values[:, 0], values[:, 1:], share)

        return loss_fn

    return loss_of
