"""Draws from a product of diffusions by Langevin steps at falling noise.

The diffusions of p(y | x_1), ..., p(y | x_T) do not multiply to the diffusion of the
product, but at each noise scale s their scores add to that of a bridging density,

    sum_t grad log p_s(w | x_t) - (T - 1) grad log p_s(w),

which is a normal at large noise and the product itself at none.  A step is that of an
Ornstein-Uhlenbeck process with the curvature P of the bridging density,

    w' = w + c P^{-1} score + (c (2 - c) P^{-1})^{1/2} xi,    xi ~ N(0, I),

exact for a normal with any c up to 1.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from sbijax.base import Array, SolverInfo
from sbijax.checks import check_count, check_positive
from sbijax.data import count_invalid
from sbijax.noise import normal

__all__ = ["ScoreAt", "ScoreSampler", "annealed_langevin"]

ScoreAt = Callable[[Array, Array], Array]

_NUM_PROBED = 32
_SETTLED = 0.03


class ScoreSampler(Protocol):
    """Draws from a product of densities that share a prior."""

    def __call__(
        self,
        key: Array,
        score: ScoreAt,
        prior_score: ScoreAt,
        *,
        start: Array,
        num_trials: Array,
    ) -> tuple[Array, SolverInfo]:
        """Return as many w `[S, D]` as `start` has draws of the prior.

        `score(w [D], noise) -> [D]` is the sum of the scores of `num_trials`
        posteriors and `prior_score` that of the prior, all widened by normal noise
        of this scale.
        """
        ...


def annealed_langevin(
    *,
    num_levels: int = 40,
    num_steps: int = 3,
    step_size: float = 0.5,
    max_noise: float = 5.0,
    min_noise: float = 0.003,
) -> ScoreSampler:
    """Langevin steps at noise scales that fall evenly in their logarithm.

    Directions settle one after the other: in each the steps stop once the noise is
    much narrower than the posterior of one trial, where scores are hard to learn
    and nothing is left to gain.

    Args:
        num_levels: noise scales.
        num_steps: steps at each.
        step_size: the share c of the way to the local mean, at most 1.
        max_noise: the first scale, in residual standard deviations of a linear
            regression of theta on x.
        min_noise: the last; below the width of the posterior of a single trial.

    Returns:
        A sampler for `iid(make_npse(prior), prior)`; its `info` counts the steps.

    Raises:
        TypeError: a number of another kind.
        ValueError: no steps, fewer than two levels, a step above 1, or noise that
            does not fall.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.samplers import annealed_langevin
        >>> def score(w, noise):  # ten trials, each with the posterior N(.5, .5)
        ...     return 10.0 * (0.5 - w) / (0.5 + noise**2)
        >>> def prior_score(w, noise):  # N(0, 1)
        ...     return -w / (1.0 + noise**2)
        >>> start = jax.random.normal(jax.random.key(0), (4_000, 1))
        >>> w, info = annealed_langevin()(
        ...     jax.random.key(1), score, prior_score, start=start, num_trials=10
        ... )
        >>> bool(abs(w.mean() - 10 / 11) < 0.02)  # the posterior is N(10/11, 1/11)
        True

    Reference:
        Geffner, Papamakarios, Mnih. Compositional score modeling for
        simulation-based inference, 2023.
        Linhart, Cardoso, Gramfort, Le Corff, Rodrigues. Diffusion posterior sampling
        for simulation-based inference in tall data settings, 2024.
    """
    num_levels = check_count(num_levels, "num_levels", least=2)
    num_steps = check_count(num_steps, "num_steps")
    share = check_positive(step_size, "step_size")
    max_noise = check_positive(max_noise, "max_noise")
    min_noise = check_positive(min_noise, "min_noise")
    if share > 1.0:
        raise ValueError(f"step_size must be at most 1, got {step_size}.")
    if min_noise >= max_noise:
        raise ValueError(
            f"min_noise must be below max_noise, got {min_noise} and {max_noise}."
        )

    def draw(
        key: Array,
        score: ScoreAt,
        prior_score: ScoreAt,
        *,
        start: Array,
        num_trials: Array,
    ) -> tuple[Array, SolverInfo]:
        scales = jnp.geomspace(max_noise, min_noise, num_levels, dtype=start.dtype)
        start_key, key = jax.random.split(key)
        noise = normal(start_key, start.shape, start.dtype)

        def total(w: Array, scale: Array) -> Array:
            return score(w, scale) - (num_trials - 1) * prior_score(w, scale)

        def curvatures(of: ScoreAt, w: Array, scale: Array) -> Array:
            """Of some draws `[P, D, D]`, over the largest that there can be."""
            slopes = jax.vmap(jax.jacfwd(of), (0, None))(w[:_NUM_PROBED], scale)
            largest = num_trials / scale**2
            return -0.5 * (slopes + jnp.swapaxes(slopes, 1, 2)) / largest

        def level(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            w, key = carry
            scale = scales[i]
            each = curvatures(total, w, scale)
            _, basis = jnp.linalg.eigh(jnp.mean(each, axis=0))
            # The mean of fourth powers: steps are safe where the density is narrowest.
            along = jnp.mean(jnp.linalg.norm(each @ basis, axis=1) ** 4, axis=0) ** 0.25
            precision = jnp.maximum(along, 1e-3 / num_trials) * num_trials / scale**2
            single = jnp.mean(curvatures(score, w, scale), axis=0)
            of_noise = jnp.sum(basis * (single @ basis), axis=0)
            size = share * jnp.clip(of_noise / _SETTLED, 0.0, 1.0)

            def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                w, key = carry
                key, fresh_key = jax.random.split(key)
                fresh = normal(fresh_key, w.shape, w.dtype)
                drift = jax.vmap(total, (0, None))(w, scale) @ basis
                move = size / precision * drift
                move += jnp.sqrt(size * (2.0 - size) / precision) * fresh
                return w + move @ basis.T, key

            return jax.lax.fori_loop(0, num_steps, step, (w, key))

        first = start + max_noise * noise
        w, _ = jax.lax.fori_loop(0, num_levels, level, (first, key))
        info = SolverInfo(
            num_invalid=count_invalid(w), num_steps=jnp.asarray(num_levels * num_steps)
        )
        return w, info

    return draw
