"""Nested sampling with slice moves.

Live points are drawn from the prior.  Those of lowest likelihood die, again and
again, and are replaced by points of higher likelihood, so that the prior volume X
above the likelihood L shrinks by known factors:

    p(x) = integral L dX ~ sum_i L_i (X_{i-1} - X_i),   X_i = X_{i-1} exp(-1 / n_i),

with n_i points alive when i dies.  The terms of the sum are the weights of the dead
points as draws of the posterior.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Sampler, Target
from sbijax.checks import check_count, check_finite
from sbijax.samplers.report import NO_DENSITY, guard, report
from sbijax.samplers.weights import draw_weighted

__all__ = ["nested_sampling"]

_CANDIDATES = 10  # draws from the prior for each live point
_LEAST_DISTINCT = 0.1  # share of the live points
_MAX_EXPANSIONS = 10
_MAX_SHRINKAGE = 50
_JITTER = 1e-6  # relative, on the variances of the live points


class _Run(NamedTuple):
    """The loop's carry; `dead_z` is `[max_steps, num_delete, D]`.

    `log_volume` is log X, and `log_dead` and `log_live` are the logarithms of
    the evidence of dead and of live points.
    """

    step: Array
    key: Array
    live: Any
    dead_z: Array
    dead_log_weight: Array
    log_volume: Array
    log_dead: Array
    log_live: Array
    acceptance: Array


def nested_sampling(
    *,
    num_live: int = 500,
    num_delete: int = 50,
    num_inner_steps: int | None = None,
    max_steps: int = 500,
    termination: float = -3.0,
) -> Sampler:
    """Nested sampling: draws and an accurate evidence, without gradients.

    The draws are resampled from the weighted points, so that there are repeated
    ones if S is more than a part of `ess`, the effective number of the points.
    Points without density are left out from the start, and the share of the
    prior that they take is estimated: a run that finds next to none with density
    has failed.

    Args:
        num_live: number of live points; the standard error of log p(x) is about
            sqrt(H / num_live), with H the relative entropy of the posterior to
            the prior.
        num_delete: points that die in each step, fewer than `num_live`.
        num_inner_steps: slice moves that make a new point, by default
            max(5, 2 D).
        max_steps: a run that has not ended by then has failed.  A step takes
            log X down by about num_delete / num_live.
        termination: the run ends when the log-evidence of the live points is
            this far from that of the dead ones.

    Returns:
        A sampler with one chain of exactly S draws in random order.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: a count below 1, or as many points to delete as there are.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.nested import nested_sampling
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> sampler = nested_sampling(num_live=200, num_delete=40)
        >>> z, info = sampler(jax.random.key(0), target, num_samples=500)
        >>> z.shape, bool(abs(info.log_evidence + 2.27) < 0.3)
        ((1, 500, 1), True)

    Reference:
        Skilling. Nested sampling for general Bayesian computation, 2006.
        Yallup, Kroupa, Handley. Nested slice sampling, 2026.
    """
    num_live = check_count(num_live, "num_live", least=2)
    num_delete = check_count(num_delete, "num_delete")
    if num_delete >= num_live:
        raise ValueError(
            f"num_delete must be below num_live = {num_live}, got {num_delete}."
        )
    if num_inner_steps is not None:
        num_inner_steps = check_count(num_inner_steps, "num_inner_steps")
    max_steps = check_count(max_steps, "max_steps")
    check_finite(termination, "termination")

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        start_key, loop_key, draw_key = jax.random.split(key, 3)
        live, share, num_good = _init(start_key, target, num_live)
        has_density = num_good > 0
        num_moves = num_inner_steps or max(5, 2 * live.position.shape[1])
        step = _make_step(target, num_delete, num_moves)

        def is_going(run: _Run) -> Array:
            is_short = run.log_live - run.log_dead > termination
            return (run.step < max_steps) & is_short & has_density

        run = _start(loop_key, live, num_delete, max_steps)
        run = jax.lax.while_loop(is_going, step, run)
        is_done = run.log_live - run.log_dead <= termination
        is_done = is_done & (num_good >= _LEAST_DISTINCT * num_live)
        z, ess = draw_weighted(draw_key, *_weigh(run), num_samples)
        log_evidence = jnp.log(share) + jnp.logaddexp(run.log_dead, run.log_live)
        chain, info = report(
            z[None],
            acceptance=run.acceptance[None] / jnp.maximum(run.step, 1),
            failed=~is_done[None],
            log_evidence=jnp.where(has_density, log_evidence, -jnp.inf),
        )
        return chain, info._replace(ess=jnp.full(z.shape[1], ess))

    return sampler


def _init(key: Array, target: Target, num_live: int) -> tuple[Any, Array, Array]:
    """Live points with density, the prior's share that has it, and their number.

    Points without density would be a plateau of the likelihood, on which the
    volumes are not known: leave them out, and count how many there were.
    """
    keys = jax.random.split(key, _CANDIDATES * num_live)
    z = jax.vmap(target.sample_prior)(keys)
    points = jax.vmap(_make_point(target))(z)
    good = points.loglikelihood > NO_DENSITY
    num_good = jnp.sum(good)
    # The good ones in their order, over again if there are not enough of them.
    first = jnp.argsort(~good, stable=True)
    order = first[jnp.arange(num_live) % jnp.where(num_good > 0, num_good, len(z))]
    live = jax.tree.map(lambda leaf: leaf[order], points)
    return live, jnp.mean(good, dtype=z.dtype), num_good


def _make_point(target: Target) -> Callable[..., Any]:
    """How BlackJAX has a point: position, log-prior and log-likelihood."""
    from blackjax.ns.base import StateWithLogLikelihood

    log_prior = guard(target.log_prior)
    log_likelihood = guard(target.log_likelihood)

    def make_point(z: Array, loglikelihood_birth: Any = jnp.nan) -> Any:
        prior, likelihood = log_prior(z), log_likelihood(z)
        likelihood = jnp.where(prior > NO_DENSITY, likelihood, NO_DENSITY)
        birth = jnp.full_like(likelihood, loglikelihood_birth)
        return StateWithLogLikelihood(z, prior, likelihood, birth)

    return make_point


def _start(key: Array, live: Any, num_delete: int, max_steps: int) -> _Run:
    """Nobody has died, and X = 1."""
    num_live, num_dims = live.position.shape
    dtype = live.loglikelihood.dtype
    return _Run(
        step=jnp.zeros((), int),
        key=key,
        live=live,
        dead_z=jnp.zeros((max_steps, num_delete, num_dims), live.position.dtype),
        dead_log_weight=jnp.full((max_steps, num_delete), -jnp.inf, dtype),
        log_volume=jnp.zeros((), dtype),
        log_dead=jnp.full((), -jnp.inf, dtype),
        log_live=jax.nn.logsumexp(live.loglikelihood) - jnp.log(num_live),
        acceptance=jnp.zeros((), dtype),
    )


def _make_step(
    target: Target, num_delete: int, num_moves: int
) -> Callable[[_Run], _Run]:
    """Let `num_delete` points die, replace them and keep the books.

    BlackJAX's adaptive kernel uses a key twice, and its slice moves are scanned
    over keys, which the key-reuse checker of JAX mistakes for reuse under `vmap`.
    """
    from blackjax.ns import base

    kernel = base.build_kernel(
        lambda state: base.delete_fn(state, num_delete),
        _make_replacement(target, num_delete, num_moves),
    )

    def step(run: _Run) -> _Run:
        key, kernel_key = jax.random.split(run.key)
        state, info = kernel(kernel_key, base.NSState(run.live))
        live, dead = state.particles, info.particles
        num_live = live.loglikelihood.size
        before = run.log_volume - _shrinkage(num_live, num_delete)
        log_volume = before[-1]
        log_shell = before[:-1] + jnp.log(-jnp.expm1(before[1:] - before[:-1]))
        log_weight = log_shell + dead.loglikelihood
        log_live = jax.nn.logsumexp(live.loglikelihood) - jnp.log(num_live)
        return _Run(
            step=run.step + 1,
            key=key,
            live=live,
            dead_z=run.dead_z.at[run.step].set(dead.position),
            dead_log_weight=run.dead_log_weight.at[run.step].set(log_weight),
            log_volume=log_volume,
            log_dead=jnp.logaddexp(run.log_dead, jax.nn.logsumexp(log_weight)),
            log_live=log_volume + log_live,
            acceptance=run.acceptance + info.update_info,
        )

    return step


def _shrinkage(num_live: int, num_delete: int) -> Array:
    """Mean of -log X after 0, 1, ... deaths, while the dead are not replaced."""
    alive = num_live - jnp.arange(num_delete)
    return jnp.concatenate([jnp.zeros(1), jnp.cumsum(1.0 / alive)])


def _make_replacement(
    target: Target, num_delete: int, num_moves: int
) -> Callable[[Array, Any, Array], tuple[Any, Array]]:
    """New points above a likelihood, and the share of moves that found a place.

    Each is a copy of a survivor that is moved along random directions, scaled by
    the covariance of the live points.
    """
    from blackjax.mcmc import slice as slices
    from blackjax.ns import nss

    kernel = slices.build_kernel(
        slices.stepping_out, _MAX_EXPANSIONS, max_shrinkage=_MAX_SHRINKAGE
    )
    move = nss.slice_constrained_step(
        _make_point(target), kernel, nss.covariance_proposal
    )

    def replace(key: Array, state: Any, threshold: Array) -> tuple[Any, Array]:
        choice_key, move_key = jax.random.split(key)
        live = state.particles
        survives = live.loglikelihood > threshold
        weight = jnp.where(jnp.any(survives), survives, True).astype(float)
        parent = jax.random.choice(
            choice_key, weight.size, (num_delete,), p=weight / jnp.sum(weight)
        )
        factor = _covariance_factor(live.position)

        def one(key: Array, point: Any) -> tuple[Any, Array]:
            def step(_: int, carry: tuple) -> tuple:
                key, point, rate = carry
                key, step_key = jax.random.split(key)
                point, info = move(step_key, point, threshold, covariance_factor=factor)
                return key, point, rate + info.is_accepted

            start = (key, point, jnp.zeros((), threshold.dtype))
            _, point, rate = jax.lax.fori_loop(0, num_moves, step, start)
            return point._replace(loglikelihood_birth=threshold), rate / num_moves

        points = jax.tree.map(lambda leaf: leaf[parent], live)
        points, rate = jax.vmap(one)(jax.random.split(move_key, num_delete), points)
        return points, jnp.mean(rate)

    return replace


def _covariance_factor(z: Array) -> Array:
    """Cholesky factor of the covariance of points `[num_live, D]`."""
    centred = z - jnp.mean(z, axis=0)
    covariance = centred.T @ centred / len(z)
    variance = jnp.diag(covariance)
    floor = _JITTER * variance + jnp.finfo(z.dtype).tiny
    return jnp.linalg.cholesky(covariance + jnp.diag(floor))


def _weigh(run: _Run) -> tuple[Array, Array]:
    """All points `[N, D]`, dead and alive, and their weights, which sum to 1."""
    num_live, num_dims = run.live.position.shape
    log_live = run.log_volume - jnp.log(num_live) + run.live.loglikelihood
    log_weight = jnp.concatenate([run.dead_log_weight.ravel(), log_live])
    z = jnp.concatenate([run.dead_z.reshape(-1, num_dims), run.live.position])
    return z, jax.nn.softmax(log_weight)
