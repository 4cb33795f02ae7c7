"""Markov chain Monte Carlo: NUTS, HMC, MALA and slice sampling.

A chain leaves the posterior p(z | x) as it is,

    z' ~ K(. | z),   integral K(z' | z) p(z | x) dz = p(z' | x),

so that its draws follow the posterior once it has arrived there.  Each chain starts
at a draw of the prior that explains x well, tunes its own kernel K during warm-up
and keeps it fixed afterwards.  A chain stays in the mode that it started in if the
modes are well separated; R-hat compares the chains and tells.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sbijax.base import Array, ChainInfo, Sampler, Target
from sbijax.checks import check_count, check_fraction
from sbijax.noise import normal
from sbijax.samplers.importance import start_positions
from sbijax.samplers.report import NO_DENSITY, log_posterior, report

__all__ = ["hmc", "mala", "nuts", "slice_sampling"]

_MIN_DRAWS = 100  # of a chain, so that its diagnostics mean something
_NUM_WINDOWS = 6  # re-estimates of the covariance in the warm-up of slice sampling
_MIN_FOR_COVARIANCE = 10  # draws, below which the directions stay as they were
_SLICE_WIDTH = 2.0  # standard deviations
_JITTER = 1e-3  # relative, on the variances that scale the directions

LogDensity = Callable[[Array], Array]


class _Move(NamedTuple):
    """One transition: the acceptance rate, and 1 if it was divergent."""

    state: Any
    acceptance: Array
    divergent: Array


class _Algorithm(NamedTuple):
    """What BlackJAX's warm-up needs of an algorithm."""

    init: Callable
    build_kernel: Callable


Step = Callable[[Array, Any], _Move]
# (key, log-density, start) -> the state, and the tuned step
WarmUp = Callable[[Array, LogDensity, Array], tuple[Any, Step]]


def nuts(
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    target_acceptance: float = 0.8,
    max_num_doublings: int = 8,
    dense_mass: bool = True,
    thin: int = 1,
    num_candidates: int = 1000,
) -> Sampler:
    """No-U-turn sampler: few and nearly independent draws by the gradient.

    Divergent transitions mean that the step size is too large for a part of the
    posterior, which the chain then misses: raise `target_acceptance`.

    Args:
        num_chains: number of chains C; each gives S / C draws.
        num_warmup: transitions that tune step size and mass matrix.
        target_acceptance: mean acceptance rate of the tuned step size.
        max_num_doublings: a trajectory has at most 2^max_num_doublings steps.
        dense_mass: whether the mass matrix has correlations; turn it off for
            tens of dimensions.
        thin: transitions from one draw to the next.
        num_candidates: draws from the prior to choose the starts from.

    Returns:
        A sampler; where S asks for fewer than 100 draws of a chain, it makes
        100 and returns an even selection of them.

    Raises:
        TypeError: a count that is not a whole number, or a rate that is none.
        ValueError: a count below 1, fewer candidates than chains, or an
            acceptance rate outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.mcmc import nuts
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> z, info = nuts()(jax.random.key(0), target, num_samples=2000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((4, 500, 1), True)

    Reference:
        Hoffman, Gelman. The No-U-Turn sampler: adaptively setting path lengths
        in Hamiltonian Monte Carlo, 2014.
        Betancourt. A conceptual introduction to Hamiltonian Monte Carlo, 2017.
    """
    max_num_doublings = check_count(max_num_doublings, "max_num_doublings")
    warm_up = _tune_by_gradient(
        _nuts,
        num_warmup=num_warmup,
        target_acceptance=target_acceptance,
        dense_mass=dense_mass,
        options={"max_num_doublings": max_num_doublings},
    )
    return _make_sampler(warm_up, num_chains, num_candidates, thin)


def hmc(
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    target_acceptance: float = 0.8,
    num_integration_steps: int = 10,
    dense_mass: bool = True,
    thin: int = 1,
    num_candidates: int = 1000,
) -> Sampler:
    """Hamiltonian Monte Carlo with trajectories of random length.

    Every transition takes a uniformly random number of leapfrog steps, from 1
    to `num_integration_steps`: with a fixed number a trajectory may come back
    to where it began.

    Args:
        num_chains: number of chains C; each gives S / C draws.
        num_warmup: transitions that tune step size and mass matrix.
        target_acceptance: mean acceptance rate of the tuned step size.
        num_integration_steps: the largest number of leapfrog steps.
        dense_mass: whether the mass matrix has correlations; turn it off for
            tens of dimensions.
        thin: transitions from one draw to the next.
        num_candidates: draws from the prior to choose the starts from.

    Returns:
        A sampler, see `nuts`.

    Raises:
        TypeError: a count that is not a whole number, or a rate that is none.
        ValueError: a count below 1, fewer candidates than chains, or an
            acceptance rate outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.mcmc import hmc
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> z, info = hmc()(jax.random.key(0), target, num_samples=2000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((4, 500, 1), True)

    Reference:
        Neal. MCMC using Hamiltonian dynamics, 2011.
    """
    num_integration_steps = check_count(num_integration_steps, "num_integration_steps")
    warm_up = _tune_by_gradient(
        _hmc_of_random_length,
        num_warmup=num_warmup,
        target_acceptance=target_acceptance,
        dense_mass=dense_mass,
        options={"num_integration_steps": num_integration_steps},
    )
    return _make_sampler(warm_up, num_chains, num_candidates, thin)


def mala(
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    target_acceptance: float = 0.574,
    dense_mass: bool = True,
    thin: int = 5,
    num_candidates: int = 1000,
) -> Sampler:
    """Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step.

    The mass matrix is the inverse of the preconditioner of the Langevin
    equation.

    Args:
        num_chains: number of chains C; each gives S / C draws.
        num_warmup: transitions that tune step size and mass matrix.
        target_acceptance: mean acceptance rate of the tuned step size; 0.574
            is the best one in many dimensions.
        dense_mass: whether the mass matrix has correlations; turn it off for
            tens of dimensions.
        thin: transitions from one draw to the next.
        num_candidates: draws from the prior to choose the starts from.

    Returns:
        A sampler, see `nuts`.

    Raises:
        TypeError: a count that is not a whole number, or a rate that is none.
        ValueError: a count below 1, fewer candidates than chains, or an
            acceptance rate outside (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.mcmc import mala
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> z, info = mala()(jax.random.key(0), target, num_samples=2000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((4, 500, 1), True)

    Reference:
        Roberts, Rosenthal. Optimal scaling of discrete approximations to
        Langevin diffusions, 1998.
    """
    warm_up = _tune_by_gradient(
        _hmc,
        num_warmup=num_warmup,
        target_acceptance=target_acceptance,
        dense_mass=dense_mass,
        options={"num_integration_steps": 1},
    )
    return _make_sampler(warm_up, num_chains, num_candidates, thin)


def slice_sampling(
    *,
    num_chains: int = 4,
    num_warmup: int = 300,
    max_expansions: int = 10,
    thin: int | None = None,
    num_candidates: int = 1000,
) -> Sampler:
    """Slice sampling along random directions: no gradient, and no step size.

    The directions are drawn from a normal distribution with the covariance of
    the chain's own warm-up.

    Args:
        num_chains: number of chains C; each gives S / C draws.
        num_warmup: draws, of `thin` transitions each, that estimate the
            covariance.
        max_expansions: how often the interval on the line, of two standard
            deviations, can be extended by its own length.
        thin: transitions from one draw to the next, by default D.
        num_candidates: draws from the prior to choose the starts from.

    Returns:
        A sampler, see `nuts`.  Its `acceptance` is the share of transitions
        that found a point of the slice, which is nearly 1.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: a count below 1, or fewer candidates than chains.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.scipy.stats import norm
        >>> from sbijax.base import Target
        >>> from sbijax.samplers.mcmc import slice_sampling
        >>> target = Target(
        ...     sample_prior=lambda key: jax.random.normal(key, (1,)),
        ...     log_prior=lambda z: jnp.sum(norm.logpdf(z)),
        ...     log_likelihood=lambda z: jnp.sum(norm.logpdf(2.0, z)),
        ... )
        >>> z, info = slice_sampling()(jax.random.key(0), target, num_samples=2000)
        >>> z.shape, bool(abs(jnp.mean(z) - 1.0) < 0.1)
        ((4, 500, 1), True)

    Reference:
        Neal. Slice sampling, 2003.
    """
    num_warmup = check_count(num_warmup, "num_warmup")
    max_expansions = check_count(max_expansions, "max_expansions")

    def warm_up(key: Array, log_density: LogDensity, start: Array) -> tuple[Any, Step]:
        return _tune_slice(key, log_density, start, num_warmup, max_expansions, thin)

    return _make_sampler(warm_up, num_chains, num_candidates, thin)


def _make_sampler(
    warm_up: WarmUp, num_chains: int, num_candidates: int, thin: int | None
) -> Sampler:
    """The sampler of several chains, each with its own warm-up."""
    num_chains = check_count(num_chains, "num_chains")
    num_candidates = check_count(num_candidates, "num_candidates", least=num_chains)
    if thin is not None:
        thin = check_count(thin, "thin")

    def sampler(
        key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        num_samples = check_count(num_samples, "num_samples")
        length = -(-num_samples // num_chains)
        num_draws = max(length, _MIN_DRAWS)
        start_key, chain_key = jax.random.split(key)
        starts = start_positions(start_key, target, num_chains, num_candidates)
        dtype = starts.dtype

        # BlackJAX computes in the default precision, the target in its own.
        def log_density(z: Array) -> Array:
            return log_posterior(target)(z.astype(dtype)).astype(z.dtype)

        def run(key: Array, start: Array) -> tuple[Array, ...]:
            warm_key, draw_key = jax.random.split(key)
            state, step = warm_up(warm_key, log_density, start)
            return _run_chain(draw_key, state, step, num_draws, thin)

        keys = jax.random.split(chain_key, num_chains)
        chains, acceptance, num_divergent, failed = jax.vmap(run)(
            keys, starts.astype(float)
        )
        chains, info = report(
            chains.astype(dtype),
            acceptance=acceptance,
            num_divergent=jnp.sum(jnp.where(failed, 0, num_divergent)),
            failed=failed,
        )
        kept = jnp.arange(length) * num_draws // length
        return chains[:, kept], info

    return sampler


def _run_chain(
    key: Array, state: Any, step: Step, num_draws: int, thin: int | None
) -> tuple[Array, Array, Array, Array]:
    """Draws `[n, D]`, mean acceptance, divergences and whether the chain failed.

    A chain fails that begins where there is no density, that is not finite or
    that never moves.
    """
    first = state

    def draw(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], tuple]:
        key, state = carry
        key, move_key = jax.random.split(key)
        state, acceptance, num_divergent = _move(move_key, state, step, thin)
        return (key, state), (state.position, acceptance, num_divergent)

    (_, last), (draws, acceptance, num_divergent) = jax.lax.scan(
        draw, (key, state), None, length=num_draws
    )
    has_density = (first.logdensity > NO_DENSITY) & (last.logdensity > NO_DENSITY)
    has_moved = jnp.any(draws != first.position)
    failed = ~(has_density & has_moved & jnp.all(jnp.isfinite(draws)))
    return draws, jnp.mean(acceptance), jnp.sum(num_divergent), failed


def _move(key: Array, state: Any, step: Step, thin: int | None) -> _Move:
    """`thin` transitions, by default D: mean acceptance, and divergences."""
    num_moves = thin or state.position.size

    def again(_: int, carry: tuple[Array, _Move]) -> tuple[Array, _Move]:
        key, done = carry
        key, step_key = jax.random.split(key)
        new = step(step_key, done.state)
        acceptance = done.acceptance + new.acceptance / num_moves
        return key, _Move(new.state, acceptance, done.divergent + new.divergent)

    zero = jnp.zeros((), state.position.dtype)
    start = (key, _Move(state, zero, jnp.zeros((), int)))
    return jax.lax.fori_loop(0, num_moves, again, start)[1]


def _tune_by_gradient(
    load: Callable[[], Any],
    *,
    num_warmup: int,
    target_acceptance: float,
    dense_mass: bool,
    options: dict[str, int],
) -> WarmUp:
    """Warm-up by windows: step size by dual averaging, and the mass matrix."""
    num_warmup = check_count(num_warmup, "num_warmup")
    target_acceptance = check_fraction(target_acceptance, "target_acceptance")

    def warm_up(key: Array, log_density: LogDensity, start: Array) -> tuple[Any, Step]:
        import blackjax

        algorithm = load()
        adaptation = blackjax.window_adaptation(
            algorithm,
            log_density,
            is_mass_matrix_diagonal=not dense_mass,
            target_acceptance_rate=target_acceptance,
            adaptation_info_fn=lambda *_: None,
            **options,
        )
        (state, tuned), _ = adaptation.run(_raw_key(key), start, num_warmup)
        kernel = algorithm.build_kernel()

        def step(key: Array, state: Any) -> _Move:
            state, info = kernel(_raw_key(key), state, log_density, **tuned)
            return _Move(state, info.acceptance_rate, info.is_divergent)

        return state, step

    return warm_up


def _raw_key(key: Array) -> Array:
    """A raw key from a typed one.

    The key-reuse checker of JAX does not follow raw keys; under `vmap` it sees
    reuse in BlackJAX's branches and scans where there is none.
    """
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return jax.random.bits(key, shape, "uint32")


def _nuts() -> Any:
    import blackjax

    return blackjax.nuts


def _hmc() -> Any:
    import blackjax

    return blackjax.hmc


def _hmc_of_random_length() -> _Algorithm:
    """HMC whose transitions take a random number of leapfrog steps."""
    import blackjax

    def build_kernel(*args: Any) -> Callable:
        kernel = blackjax.hmc.build_kernel(*args)

        def random_kernel(
            key: Array,
            state: Any,
            log_density: LogDensity,
            step_size: Array,
            inverse_mass_matrix: Array,
            num_integration_steps: int,
        ) -> tuple[Any, Any]:
            key, length_key = jax.random.split(key)
            num_steps = jax.random.randint(length_key, (), 1, num_integration_steps + 1)
            return kernel(
                key, state, log_density, step_size, inverse_mass_matrix, num_steps
            )

        return random_kernel

    return _Algorithm(blackjax.hmc.init, build_kernel)


def _tune_slice(
    key: Array,
    log_density: LogDensity,
    start: Array,
    num_warmup: int,
    max_expansions: int,
    thin: int | None,
) -> tuple[Any, Step]:
    """Warm-up in windows; each uses the covariance of the later half of the draws."""
    from blackjax.mcmc import slice as slices

    kernel = slices.build_kernel(slices.stepping_out, max_expansions=max_expansions)
    length = -(-num_warmup // _NUM_WINDOWS)
    num_dims = start.size

    def make_step(factor: Array) -> Step:
        def step(key: Array, state: Any) -> _Move:
            propose = _along(factor, slices.SliceState)
            state, info = kernel(key, state, log_density, propose, _SLICE_WIDTH)
            rate = info.is_accepted.astype(start.dtype)
            return _Move(state, rate, jnp.zeros((), int))

        return step

    def window(i: Array, carry: tuple) -> tuple:
        key, state, factor, draws = carry
        step = make_step(factor)

        def draw(j: Array, carry: tuple) -> tuple:
            key, state, draws = carry
            key, move_key = jax.random.split(key)
            state = _move(move_key, state, step, thin).state
            return key, state, draws.at[i * length + j].set(state.position)

        key, state, draws = jax.lax.fori_loop(0, length, draw, (key, state, draws))
        index = jnp.arange(draws.shape[0])
        recent = (index >= (i + 1) * length // 2) & (index < (i + 1) * length)
        enough = jnp.sum(recent) >= _MIN_FOR_COVARIANCE
        factor = jnp.where(enough, _covariance_factor(draws, recent), factor)
        return key, state, factor, draws

    draws = jnp.zeros((_NUM_WINDOWS * length, num_dims), start.dtype)
    factor = jnp.eye(num_dims, dtype=start.dtype)
    carry = (key, slices.init(start, log_density), factor, draws)
    _, state, factor, _ = jax.lax.fori_loop(0, _NUM_WINDOWS, window, carry)
    return state, make_step(factor)


def _along(factor: Array, make_state: Callable) -> Callable:
    """Proposals on a line whose direction has one standard deviation as its unit.

    BlackJAX's own directions have unit length, so that one width has to do for
    the widest and the narrowest of them.
    """

    def propose(key: Array, z: Array, log_density: LogDensity) -> Callable:
        noise = normal(key, z.shape, z.dtype)
        direction = factor @ (noise / jnp.linalg.norm(noise))

        def at(t: Array) -> tuple[Any, bool]:
            new = (z + t * direction).astype(z.dtype)
            return make_state(new, log_density(new)), True

        return at

    return propose


def _covariance_factor(draws: Array, mask: Array) -> Array:
    """Cholesky factor of the covariance of the draws `[n, D]` that the mask keeps.

    Correlations are shrunk as if by D uncorrelated draws.
    """
    num, num_dims = jnp.sum(mask), draws.shape[1]
    weight = mask[:, None] / num
    centred = draws - jnp.sum(weight * draws, axis=0)
    covariance = centred.T @ (weight * centred)
    variances = jnp.diag(covariance)
    tiny = jnp.finfo(draws.dtype).tiny
    shrunk = covariance * num / (num + num_dims)
    diagonal = jnp.maximum((1.0 + _JITTER) * variances, 1e3 * tiny)
    shrunk = jnp.where(jnp.eye(num_dims, dtype=bool), diagonal, shrunk)
    return jnp.linalg.cholesky(shrunk)
