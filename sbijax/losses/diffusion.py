"""Objectives of flow matching and score matching, as one regression.

All of them mix data y with noise e along a path alpha(t) y + sigma(t) e.  Divided
by its length sqrt(alpha^2 + sigma^2), every path is the same arc,

    u = cos(phi) y + sin(phi) e,    tan(phi) = sigma / alpha,

from y at phi = 0 to e at phi = pi / 2, and velocity, score and denoised y are
linear in u and in the one field that a network has to learn,

    F(u, phi, x) = E[sin(phi) y - cos(phi) e | u, x],    du / dphi = -F:

    E[y | u] = cos(phi) u + sin(phi) F,    E[e | u] = sin(phi) u - cos(phi) F.

So the objectives differ only in how often each angle is visited and in what its
errors count,

    L = E_phi w(phi) E |F(u, phi, x) - (sin(phi) y - cos(phi) e)|^2 / D.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sbijax.base import Array, LossFn, Params, PyTree, Simulations
from sbijax.checks import check_count, check_positive
from sbijax.data import fill_zero_weight
from sbijax.noise import normal

__all__ = ["DiffusionLoss", "Field", "edm", "flow_matching", "ve", "vp"]

Encode = Callable[[Params, PyTree, PyTree], tuple[Array, Array]]


class Field(Protocol):
    """The field F that a network learns, for one u."""

    def __call__(self, params: Params, u: Array, angle: Array, context: Array) -> Array:
        """Return F `[D]` for u `[D]` at an angle from 0 (data) to pi / 2 (noise)."""
        ...


class DiffusionLoss(NamedTuple):
    """An objective: `loss_of(encode, field) -> loss`, and the angles that it visits.

    Outside of `angles`, smallest first, a field has learned nothing; it is evaluated
    at the nearest of the two.
    """

    loss_of: Callable[[Encode, Field], LossFn]
    angles: tuple[float, float]

    def __call__(self, encode: Encode, field: Field) -> LossFn:
        """The same as `loss_of`."""
        return self.loss_of(encode, field)


def flow_matching(
    *, time_exponent: float = 1.0, min_scale: float = 1e-4, num_draws: int | None = None
) -> DiffusionLoss:
    """Straight paths t y + (1 - t) e, velocities regressed on y - e.

    Args:
        time_exponent: times have density proportional to t^exponent on [0, 1];
            above 0 those near the data are visited more often.
        min_scale: noise that is left at t = 1.
        num_draws: angles and noises for each simulation of a batch; x is embedded
            once for all of them.  By default about 1,000 for a batch, from 2 to 8
            for a simulation.

    Returns:
        A function from `encode(params, theta, x) -> (y [D], context)` and a
        `Field` to a loss.

    Raises:
        TypeError: a number of another kind.
        ValueError: an exponent of -1 or less, a scale outside [0, 1), or no draws.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import flow_matching
        >>> batch = Simulations(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def field(params, u, angle, context):  # exact where y is always 0
        ...     return -u / jnp.tan(angle)
        >>> loss = flow_matching()(lambda params, theta, x: (theta, x), field)
        >>> bool(loss(params, jax.random.key(0), batch) < 1e-6)
        True

    Reference:
        Lipman, Chen, Ben-Hamu, Nickel, Le. Flow matching for generative
        modeling, 2023.
        Wildberger, Dax, Buchholz, Green, Macke, Schoelkopf. Flow matching for
        scalable simulation-based inference, 2023.
    """
    if not -1.0 < time_exponent < math.inf:
        raise ValueError(f"time_exponent must be above -1, got {time_exponent}.")
    if not 0.0 <= min_scale < 1.0:
        raise ValueError(f"min_scale must be at least 0 and below 1, got {min_scale}.")

    def angle_of(quantile: Array) -> Array:
        t = quantile ** (1.0 / (1.0 + time_exponent))
        return jnp.arctan2(1.0 - (1.0 - min_scale) * t, t)

    # v = r' u + F / r, where r = 1 / (sin + cos) is the length of the path.
    return _regress(
        angle_of, lambda angle: (jnp.sin(angle) + jnp.cos(angle)) ** 2, num_draws
    )


def edm(
    *, location: float = -2.0, scale: float = 1.6, num_draws: int | None = None
) -> DiffusionLoss:
    """Log-normal noise scales, all errors counted alike.

    The defaults visit small scales more often than those of the paper, for
    posteriors are often much narrower than the prior.

    Args:
        location: mean of log sigma.
        scale: standard deviation of log sigma.
        num_draws: angles and noises for each simulation of a batch; x is embedded
            once for all of them.  By default about 1,000 for a batch, from 2 to 8
            for a simulation.

    Returns:
        A function from `encode(params, theta, x) -> (y [D], context)` and a
        `Field` to a loss.

    Raises:
        TypeError: a number of another kind.
        ValueError: a scale that is not positive, or no draws.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import edm
        >>> batch = Simulations(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def field(params, u, angle, context):  # exact where y is always 0
        ...     return -u / jnp.tan(angle)
        >>> loss = edm()(lambda params, theta, x: (theta, x), field)
        >>> bool(loss(params, jax.random.key(0), batch) < 1e-6)
        True

    Reference:
        Karras, Aittala, Aila, Laine. Elucidating the design space of
        diffusion-based generative models, 2022.
    """
    scale = check_positive(scale, "scale")
    if not math.isfinite(location):
        raise ValueError(f"location must be a finite number, got {location}.")

    def angle_of(quantile: Array) -> Array:
        inside = jnp.clip(quantile, 1e-6, 1.0 - 1e-6)
        log_sigma = location + scale * jax.scipy.special.ndtri(inside)
        return jnp.arctan(jnp.exp(log_sigma))

    return _regress(angle_of, jnp.ones_like, num_draws)


def ve(
    *, min_scale: float = 0.01, max_scale: float = 10.0, num_draws: int | None = None
) -> DiffusionLoss:
    """Noise y + sigma e that explodes: sigma spread evenly in its logarithm.

    Args:
        min_scale: smallest sigma.
        max_scale: largest sigma.
        num_draws: angles and noises for each simulation of a batch; x is embedded
            once for all of them.  By default about 1,000 for a batch, from 2 to 8
            for a simulation.

    Returns:
        A function from `encode(params, theta, x) -> (y [D], context)` and a
        `Field` to a loss.

    Raises:
        TypeError: a number of another kind.
        ValueError: scales that do not rise from above 0, or no draws.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import ve
        >>> batch = Simulations(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def field(params, u, angle, context):  # exact where y is always 0
        ...     return -u / jnp.tan(angle)
        >>> loss = ve()(lambda params, theta, x: (theta, x), field)
        >>> bool(loss(params, jax.random.key(0), batch) < 1e-6)
        True

    Reference:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. Score-based generative
        modeling through stochastic differential equations, 2021.
        Sharrock, Simons, Liu, Beaumont. Sequential neural score estimation, 2022.
    """
    _check_rising(min_scale, "min_scale", max_scale, "max_scale")

    def angle_of(quantile: Array) -> Array:
        log_sigma = math.log(min_scale) + quantile * math.log(max_scale / min_scale)
        return jnp.arctan(jnp.exp(log_sigma))

    return _regress(angle_of, lambda angle: jnp.cos(angle) ** 2, num_draws)


def vp(
    *, min_rate: float = 0.1, max_rate: float = 10.0, num_draws: int | None = None
) -> DiffusionLoss:
    """Noise sqrt(1 - sigma^2) y + sigma e that preserves the variance.

    Args:
        min_rate: noise rate beta at t = 0.
        max_rate: noise rate beta at t = 1, between them it rises linearly.
        num_draws: angles and noises for each simulation of a batch; x is embedded
            once for all of them.  By default about 1,000 for a batch, from 2 to 8
            for a simulation.

    Returns:
        A function from `encode(params, theta, x) -> (y [D], context)` and a
        `Field` to a loss.

    Raises:
        TypeError: a number of another kind.
        ValueError: rates that do not rise from above 0, or no draws.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.base import Params, Simulations, Stats
        >>> from sbijax.losses import vp
        >>> batch = Simulations(jnp.zeros((4, 1)), jnp.zeros(4), jnp.ones(4))
        >>> one = jax.tree.map(lambda leaf: leaf[0], batch)
        >>> params = Params(net={}, stats=Stats(one, {}, {}))
        >>> def field(params, u, angle, context):  # exact where y is always 0
        ...     return -u / jnp.tan(angle)
        >>> loss = vp()(lambda params, theta, x: (theta, x), field)
        >>> bool(loss(params, jax.random.key(0), batch) < 1e-6)
        True

    Reference:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. Score-based generative
        modeling through stochastic differential equations, 2021.
        Geffner, Papamakarios, Mnih. Compositional score modeling for
        simulation-based inference, 2023.
    """
    _check_rising(min_rate, "min_rate", max_rate, "max_rate")

    def angle_of(quantile: Array) -> Array:
        t = 1e-4 + (1.0 - 1e-4) * quantile
        exponent = 0.5 * t**2 * (max_rate - min_rate) + t * min_rate
        return jnp.arctan(jnp.sqrt(jnp.expm1(exponent)))

    return _regress(angle_of, lambda angle: jnp.cos(angle) ** 2, num_draws)


def _default_num_draws(batch_size: int) -> int:
    """Angles for each row of a batch: among many rows more of them tell little."""
    return min(8, max(2, 1_000 // batch_size))


def _regress(
    angle_of: Callable[[Array], Array],
    weigh: Callable[[Array], Array],
    num_draws: int | None,
) -> DiffusionLoss:
    """The objective for angles at quantiles in [0, 1) and their weights."""
    if num_draws is not None:
        num_draws = check_count(num_draws, "num_draws")

    def loss_of(encode: Encode, field: Field) -> LossFn:
        def loss_fn(params: Params, key: Array, batch: Simulations) -> Array:
            shift_key, noise_key = jax.random.split(key)
            theta, x, weight = fill_zero_weight(batch, params.stats.example)
            y, context = jax.vmap(encode, (None, 0, 0))(params, theta, x)
            size = weight.size
            num_each = num_draws or _default_num_draws(size)
            # Evenly spread over the batch, each angle still uniform by its shift.
            row, draw = jnp.arange(size)[:, None] / size, jnp.arange(num_each)
            shift = jax.random.uniform(shift_key, (), y.dtype)
            angle = angle_of(((row + draw) / num_each + shift) % 1.0)
            noise = normal(noise_key, (size, num_each, y.shape[1]), y.dtype)
            cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
            clean = y[:, None]
            of_draws = jax.vmap(field, (None, 0, 0, None))
            found = jax.vmap(of_draws, (None, 0, 0, 0))(
                params, cos * clean + sin * noise, angle, context
            )
            error = jnp.mean((found - (sin * clean - cos * noise)) ** 2, axis=2)
            total = jnp.sum(weight)
            score = jnp.sum(weight * jnp.mean(weigh(angle) * error, axis=1))
            return score / jnp.where(total > 0, total, 1.0)

        return loss_fn

    ends = sorted(float(angle_of(jnp.asarray(quantile))) for quantile in (0.0, 1.0))
    return DiffusionLoss(loss_of, angles=(ends[0], ends[1]))


def _check_rising(low: float, low_name: str, high: float, high_name: str) -> None:
    low, high = check_positive(low, low_name), check_positive(high, high_name)
    if low >= high:
        raise ValueError(f"{low_name} must be below {high_name}, got {low} and {high}.")
