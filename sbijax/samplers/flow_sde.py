"""Draws by reversing a diffusion step by step.

From angle phi to phi' < phi, with y and e as the field sees them at phi,

    u' = cos(phi') y + sin(phi') (sqrt(1 - k^2) e + k xi),
    k^2 = noise^2 (1 - tan^2(phi') / tan^2(phi)),   xi ~ N(0, I).

With noise = 1 each step is the exact posterior of u' given u were y known, and
many steps solve the reverse stochastic equation; with noise = 0 they solve the
probability flow.
"""

import jax
import jax.numpy as jnp

from sbijax.base import Array, SolverInfo
from sbijax.checks import check_count
from sbijax.data import count_invalid
from sbijax.noise import normal
from sbijax.samplers.flow_ode import FieldAt, FlowSampler, angle_at

__all__ = ["sde"]


def sde(*, num_steps: int = 100, noise: float = 1.0) -> FlowSampler:
    """Reverse the diffusion in a fixed number of steps, one evaluation each.

    Args:
        num_steps: steps from noise to data.  The error falls as one over their
            number: with 100, draws from a posterior a hundred times narrower than
            the prior have a standard deviation 14 % too small.
        noise: share of the noise that is drawn anew, from 0 (none: the
            probability flow, first order) to 1 (the reverse diffusion).

    Returns:
        A sampler; its `info` counts the steps, and none fails.

    Raises:
        TypeError: a number of another kind.
        ValueError: fewer than one step, or a share outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sbijax.samplers import sde
        >>> def field(u, angle):  # of y = 3
        ...     return (3.0 - jnp.cos(angle) * u) / jnp.sin(angle)
        >>> y, info = sde(num_steps=10)(jax.random.key(0), field, shape=(4, 1))
        >>> bool(jnp.all(abs(y - 3.0) < 1e-5)), int(info.num_steps)
        (True, 10)

    Reference:
        Song, Meng, Ermon. Denoising diffusion implicit models, 2021.
        Karras, Aittala, Aila, Laine. Elucidating the design space of
        diffusion-based generative models, 2022.
    """
    num_steps = check_count(num_steps, "num_steps")
    if not isinstance(noise, float | int) or isinstance(noise, bool):
        raise TypeError(f"noise must be a number from 0 to 1, got {noise!r}.")
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise must lie between 0 and 1, got {noise}.")

    def draw(
        key: Array, field: FieldAt, *, shape: tuple[int, int]
    ) -> tuple[Array, SolverInfo]:
        start_key, noise_key = jax.random.split(key)
        start = normal(start_key, shape)

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            u, key = carry
            key, fresh_key = jax.random.split(key)
            angle = angle_at(1.0 - i / num_steps)
            after = angle_at(1.0 - (i + 1) / num_steps)
            found = jax.vmap(field, (0, None))(u, angle)
            y = jnp.cos(angle) * u + jnp.sin(angle) * found
            old = jnp.sin(angle) * u - jnp.cos(angle) * found
            ratio = jnp.sin(after) * jnp.cos(angle) / (jnp.cos(after) * jnp.sin(angle))
            fresh = noise * jnp.sqrt(1.0 - ratio**2)
            kept = jnp.sqrt(1.0 - fresh**2)
            mixed = kept * old + fresh * normal(fresh_key, shape)
            return jnp.cos(after) * y + jnp.sin(after) * mixed, key

        y, _ = jax.lax.fori_loop(0, num_steps, step, (start, noise_key))
        info = SolverInfo(
            num_invalid=count_invalid(y), num_steps=jnp.asarray(num_steps)
        )
        return y, info

    return draw
