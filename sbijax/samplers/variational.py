"""Variational inference, corrected by importance weights.

A density q is fitted to the posterior p(z | x) ~ p(x | z) p(z), and draws of q are
resampled with the weights

    w_i = p(x | z_i) p(z_i) / q(z_i),

whose tail index `pareto_k` tells whether q was close enough, and whose mean is the
evidence.  `variational` fits a normalizing flow by an objective that can be chosen,
`pathfinder` normal densities along the paths of an optimiser.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sbijax.base import Array, ChainInfo, Density, PyTree, Sampler, Target
from sbijax.checks import check_count, check_finite, check_record
from sbijax.noise import normal
from sbijax.samplers.report import NO_DENSITY, guard, log_posterior, report
from sbijax.samplers.weights import draw_weighted

__all__ = [
    "Approximation",
    "Objective",
    "forward_kl",
    "importance_weighted",
    "pathfinder",
    "reverse_kl",
    "variational",
]

_LEAST_WEIGHTS = 1_000  # draws of q, if S asks for fewer
_PILOT = 1_000  # draws from the prior that set the scale of q
_MAX_NORM = 5.0  # of the gradient


class Approximation(NamedTuple):
    """The density q that is fitted, without context.

    `sample(net, key, num_draws) -> z` has shape `[n, D]` and can be
    differentiated with respect to `net`, and `log_prob(net, z) -> [n]`.
    """

    sample: Callable[[PyTree, Array, int], Array]
    log_prob: Callable[[PyTree, Array], Array]


class Objective(Protocol):
    """What `variational` minimises."""

    def __call__(
        self, net: PyTree, key: Array, q: Approximation, target: Target, num_draws: int
    ) -> Array:
        """Return a scalar whose gradient is that of the loss, from `num_draws`."""
        ...


def reverse_kl(
    net: PyTree, key: Array, q: Approximation, target: Target, num_draws: int
) -> Array:
    """KL(q || p) up to a constant: E_q[log q(z) - log p(x, z)].

    It seeks one mode and may leave others out.  The weights of draws of q cannot
    tell: `pareto_k` is small, and `log_evidence` lacks what was left out.  Where
    a large part of the prior has no density, q may end there: `num_failed` is 1.

    Reference:
        Rezende, Mohamed. Variational inference with normalizing flows, 2015.
    """
    z = q.sample(net, key, num_draws)
    log_joint = _log_joint(target)(z)
    # Without a gradient from p, draws off its support would drive q further away.
    good = log_joint > NO_DENSITY
    each = jnp.where(good, q.log_prob(net, z) - log_joint, 0.0)
    return jnp.sum(each) / jnp.maximum(jnp.sum(good), 1)


def forward_kl(
    net: PyTree, key: Array, q: Approximation, target: Target, num_draws: int
) -> Array:
    """KL(p || q), by self-normalised weights: -sum_i w_i log q(z_i).

    Half of the draws come from q and half from the prior, and their weights are
    those of draws of the mixture, so that no mode of the prior's size is missed.

    Reference:
        Gloeckler, Deistler, Macke. Variational methods for simulation-based
        inference, 2022.
    """
    q_key, prior_key = jax.random.split(key)
    fixed = jax.lax.stop_gradient(net)
    num_prior = num_draws // 2
    prior_keys = jax.random.split(prior_key, max(num_prior, 1))[:num_prior]
    z = jnp.concatenate(
        [
            q.sample(fixed, q_key, num_draws - num_prior),
            jax.vmap(target.sample_prior)(prior_keys),
        ]
    )
    share = num_prior / num_draws
    log_prior = jax.vmap(guard(target.log_prior))(z)
    log_proposal = jnp.logaddexp(
        jnp.log1p(-share) + q.log_prob(fixed, z), jnp.log(share) + log_prior
    )
    log_weight = jax.vmap(log_posterior(target))(z) - log_proposal
    weight = jax.lax.stop_gradient(jax.nn.softmax(log_weight))
    return -jnp.sum(weight * q.log_prob(net, jax.lax.stop_gradient(z)))


def importance_weighted(
    net: PyTree,
    key: Array,
    q: Approximation,
    target: Target,
    num_draws: int,
    num_particles: int = 8,
) -> Array:
    """The bound -E[log 1/K sum_k w_k] of K draws, with doubly reparameterised gradient.

    Set K by `functools.partial(importance_weighted, num_particles=16)`; K = 1
    is the bound of `reverse_kl`.  The gradient has little noise near the
    optimum, and can lose its way where large parts have no density.

    Reference:
        Burda, Grosse, Salakhutdinov. Importance weighted autoencoders, 2016.
        Tucker, Lawson, Gu, Maddison. Doubly reparameterized gradient
        estimators for Monte Carlo objectives, 2019.
    """
    num_groups = max(num_draws // num_particles, 1)
    z = q.sample(net, key, num_groups * num_particles)
    log_joint = _log_joint(target)(z)
    log_weight = log_joint - q.log_prob(jax.lax.stop_gradient(net), z)
    shape = (num_groups, num_particles)
    log_weight = log_weight.reshape(shape)
    weight = jax.lax.stop_gradient(jax.nn.softmax(log_weight, axis=1))
    good = log_joint.reshape(shape) > NO_DENSITY
    each = jnp.where(good, weight**2 * log_weight, 0.0)
    return -jnp.mean(jnp.sum(each, axis=1))


def variational(
    density: Density,
    *,
    num_steps: int = 1_000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    objective: Objective = forward_kl,
) -> Sampler:
    """Fit a normalizing flow to the posterior, and correct its draws by weights.

    The flow starts with the scale of the prior.  There is one fit for each x.

    Args:
        density: the flow, such as `sbijax.densities.nsf()`; its context is a
            constant.
        num_steps: steps of Adam; those with a gradient that is not finite are
            skipped.
        batch_size: draws for each gradient.
        learning_rate: at the start; it falls to 0 along a cosine.
        objective: `forward_kl`, `reverse_kl`, `importance_weighted`, or any
            function like them.

    Returns:
        A sampler with one chain of exactly S draws; `pareto_k` is that of the
        draws before resampling, and the ESS Kish's.

    Raises:
        TypeError: no `Density`, an objective that is not a function, or a
            count that is not a whole number.
        ValueError: a count below 1, or a learning rate that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.densities import affine, coupling, flow
        >>> from sbijax.samplers.variational import variational
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> density = flow(coupling(affine()), num_layers=1)
        >>> sampler = variational(density, num_steps=200)
        >>> z, info = sampler(jax.random.key(0), target, num_samples=1000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((1, 1000, 1), True)

    Reference:
        Gloeckler, Deistler, Macke. Variational methods for simulation-based
        inference, 2022.
    """
    check_record(density, Density, "density", "Make one with sbijax.densities.nsf().")
    num_steps = check_count(num_steps, "num_steps")
    batch_size = check_count(batch_size, "batch_size", least=2)
    if not callable(objective):
        raise TypeError(
            f"objective must be a function such as forward_kl, got {objective!r}."
        )
    check_finite(learning_rate, "learning_rate")
    if not isinstance(learning_rate, jax.core.Tracer) and learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        init_key, fit_key, draw_key, resample_key = jax.random.split(key, 4)
        net, q = _make_approximation(init_key, density, target)

        def loss(net: PyTree, key: Array) -> Array:
            return objective(net, key, q, target, batch_size)

        net = _adam(loss, net, fit_key, num_steps, learning_rate)
        z = q.sample(net, draw_key, max(num_samples, _LEAST_WEIGHTS))
        log_density = jax.vmap(log_posterior(target))(z)
        log_weight = log_density - q.log_prob(net, z)
        return _correct(resample_key, z, log_density, log_weight, num_samples)

    return sampler


def pathfinder(
    *,
    num_paths: int = 8,
    num_candidates: int = 5,
    max_iterations: int = 50,
    num_elbo_draws: int = 50,
) -> Sampler:
    """Fit a normal density on each of several L-BFGS paths, and weigh their draws.

    Each path yields the density of the highest ELBO along it.  The weights are
    those of draws of the mixture of these densities, so that modes that were
    found by several paths do not count several times.

    Args:
        num_paths: number of paths.
        num_candidates: draws from the prior for each path, which starts from
            the one of highest density.
        max_iterations: of L-BFGS.
        num_elbo_draws: draws for the ELBO of each iterate.

    Returns:
        A sampler with one chain of exactly S draws; `pareto_k` is that of the
        draws before resampling, and the ESS Kish's.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: a count below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.variational import pathfinder
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> sampler = pathfinder(num_paths=2)
        >>> draw = jax.jit(lambda key: sampler(key, target, num_samples=1000))
        >>> z, info = draw(jax.random.key(0))
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((1, 1000, 1), True)

    Reference:
        Zhang, Carpenter, Gelman, Vehtari. Pathfinder: parallel quasi-Newton
        variational inference, 2022.
    """
    num_paths = check_count(num_paths, "num_paths")
    num_candidates = check_count(num_candidates, "num_candidates")
    max_iterations = check_count(max_iterations, "max_iterations")
    num_elbo_draws = check_count(num_elbo_draws, "num_elbo_draws")

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        path_key, draw_key, resample_key = jax.random.split(key, 3)

        def path(key: Array) -> tuple[Array, Array, Array]:
            return _path(key, target, num_candidates, max_iterations, num_elbo_draws)

        means, factors, good = jax.vmap(path)(jax.random.split(path_key, num_paths))
        num_draws = max(num_samples, _LEAST_WEIGHTS)
        z, log_q = _draw_mixture(draw_key, means, factors, good, num_draws)
        log_density = jax.vmap(log_posterior(target))(z)
        return _correct(resample_key, z, log_density, log_density - log_q, num_samples)

    return sampler


def _safe(target: Target) -> Callable[[Array], Array]:
    """The guarded log-density, with gradient 0 where the gradient is not finite.

    It can be differentiated once.
    """
    value_and_grad = jax.value_and_grad(log_posterior(target))

    def safe(z: Array) -> Array:
        value, grad = jax.lax.stop_gradient(value_and_grad(jax.lax.stop_gradient(z)))
        grad = jnp.where(jnp.isfinite(grad), grad, 0.0)
        return value + jnp.sum(grad * (z - jax.lax.stop_gradient(z)))

    return safe


def _log_joint(target: Target) -> Callable[[Array], Array]:
    """`_safe` on draws `[n, D]`."""
    return jax.vmap(_safe(target))


def _make_approximation(
    key: Array, density: Density, target: Target
) -> tuple[PyTree, Approximation]:
    """The initial net, and q in units of the prior's mean and scale."""
    pilot_key, init_key = jax.random.split(key)
    pilot = jax.vmap(target.sample_prior)(jax.random.split(pilot_key, _PILOT))
    shift, scale = jnp.mean(pilot, axis=0), jnp.std(pilot, axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    context = jnp.zeros(1, pilot.dtype)

    def sample(net: PyTree, key: Array, num_draws: int) -> Array:
        shape = (num_draws, len(shift))
        return shift + scale * density.sample(net, key, context, shape=shape)

    def log_prob(net: PyTree, z: Array) -> Array:
        y = (z - shift) / scale
        each = jax.vmap(lambda y: density.log_prob(net, y, context))(y)
        return each - jnp.sum(jnp.log(scale))

    net = density.init(init_key, jnp.zeros_like(shift), context)
    return net, Approximation(sample, log_prob)


def _adam(
    loss: Callable[[PyTree, Array], Array],
    net: PyTree,
    key: Array,
    num_steps: int,
    learning_rate: float,
) -> PyTree:
    """Minimise by Adam with a cosine schedule and clipped gradients.

    Reference:
        Kingma, Ba. Adam: a method for stochastic optimization, 2015.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def step(carry: tuple, i: Array) -> tuple[tuple, None]:
        net, mean, square, key = carry
        key, loss_key = jax.random.split(key)
        grad = jax.grad(loss)(net, loss_key)
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grad)))
        good = jnp.isfinite(size)
        clip = jnp.minimum(1.0, _MAX_NORM / jnp.maximum(size, epsilon))
        rate = 0.5 * learning_rate * (1.0 + jnp.cos(jnp.pi * i / num_steps))

        def update(p: Array, m: Array, v: Array, g: Array) -> tuple:
            g = clip * g
            new_m = beta1 * m + (1.0 - beta1) * g
            new_v = beta2 * v + (1.0 - beta2) * g**2
            m_hat, v_hat = new_m / (1 - beta1**i), new_v / (1 - beta2**i)
            new_p = p - rate * m_hat / (jnp.sqrt(v_hat) + epsilon)
            return tuple(
                jnp.where(good, new, old)
                for new, old in ((new_p, p), (new_m, m), (new_v, v))
            )

        moved = jax.tree.map(update, net, mean, square, grad)
        net, mean, square = jax.tree.transpose(
            jax.tree.structure(net), jax.tree.structure((0, 0, 0)), moved
        )
        return (net, mean, square, key), None

    zeros = jax.tree.map(jnp.zeros_like, net)
    steps = jnp.arange(1, num_steps + 1)
    carry, _ = jax.lax.scan(step, (net, zeros, zeros, key), steps)
    return carry[0]


def _path(
    key: Array,
    target: Target,
    num_candidates: int,
    max_iterations: int,
    num_elbo_draws: int,
) -> tuple[Array, Array, Array]:
    """Mean, Cholesky factor of the covariance, and whether they are any good."""
    from blackjax.optimizers.lbfgs import lbfgs_inverse_hessian_formula_1
    from blackjax.vi import pathfinder as path

    start_key, path_key = jax.random.split(key)
    log_density = _safe(target)
    z = jax.vmap(target.sample_prior)(jax.random.split(start_key, num_candidates))
    start = z[jnp.argmax(jax.vmap(log_density)(z))]
    state, _ = path.approximate(
        path_key,
        log_density,
        start,
        num_elbo_draws,
        maxiter=max_iterations,
        maxls=100,
    )
    covariance = lbfgs_inverse_hessian_formula_1(state.alpha, state.beta, state.gamma)
    covariance = 0.5 * (covariance + covariance.T)
    # BlackJAX has the gradient of the negative log-density.
    mean = state.position - covariance @ state.grad_position
    factor = jnp.linalg.cholesky(covariance)
    finite = jnp.all(jnp.isfinite(factor)) & jnp.all(jnp.isfinite(mean))
    good = finite & jnp.isfinite(state.elbo)
    identity = jnp.eye(len(start), dtype=start.dtype)
    return (
        jnp.where(good, mean, start),
        jnp.where(good, factor, identity),
        good,
    )


def _draw_mixture(
    key: Array, means: Array, factors: Array, good: Array, num_draws: int
) -> tuple[Array, Array]:
    """Draws `[n, D]` of the mixture of the good normals, and their log-density.

    All are taken if none is good.
    """
    good = good | ~jnp.any(good)
    log_share = jnp.where(good, -jnp.log(jnp.sum(good)), -jnp.inf)
    order = jnp.argsort(~good, stable=True)
    # Equal numbers of each, one after the other: systematic resampling of draws
    # that took turns would fall in step with them.
    which = order[jnp.arange(num_draws) * jnp.sum(good) // num_draws]
    noise = normal(key, (num_draws, means.shape[1]), means.dtype)
    z = means[which] + jnp.einsum("nij,nj->ni", factors[which], noise)

    def log_prob(mean: Array, factor: Array) -> Array:
        u = jax.scipy.linalg.solve_triangular(factor, (z - mean).T, lower=True)
        return jnp.sum(norm.logpdf(u), axis=0) - jnp.sum(jnp.log(jnp.diag(factor)))

    each = jax.vmap(log_prob)(means, factors)
    return z, jax.nn.logsumexp(each + log_share[:, None], axis=0)


def _correct(
    key: Array, z: Array, log_density: Array, log_weight: Array, num_samples: int
) -> tuple[Array, ChainInfo]:
    """Resample draws `[n, D]` of q by Pareto-smoothed weights, and report on them."""
    from blackjax.diagnostics import psis_weights

    has_density = (log_density > NO_DENSITY) & jnp.isfinite(log_weight)
    log_weight = jnp.where(has_density, log_weight, NO_DENSITY)
    smoothed, pareto_k = psis_weights(log_weight)
    weight = jax.nn.softmax(smoothed)
    draws, ess = draw_weighted(key, z, weight, num_samples)
    failed = ~jnp.any(has_density)
    mean = jax.nn.logsumexp(log_weight) - jnp.log(len(z))
    # Ties in the tail leave it without a fit, be the weights all equal or so
    # unequal that most of them vanish.
    no_fit = jnp.where(1.0 / jnp.sum(weight**2) > 0.5 * len(z), 0.0, jnp.inf)
    pareto_k = jnp.where(jnp.isnan(pareto_k), no_fit, pareto_k)
    chain, info = report(
        draws[None],
        failed=failed[None],
        log_evidence=jnp.where(failed, -jnp.inf, mean),
        pareto_k=jnp.where(failed, jnp.inf, pareto_k),
    )
    return chain, info._replace(ess=jnp.full(z.shape[1], ess))
