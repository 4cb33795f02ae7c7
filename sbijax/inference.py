"""From a trained estimator and one observation to a posterior."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from sbijax.base import (
    AbcInfo,
    Array,
    ChainInfo,
    Estimator,
    Params,
    PyTree,
    SampleInfo,
    SbijaxWarning,
    SolverInfo,
)
from sbijax.checks import check_count, check_finite, check_key, check_like, check_record
from sbijax.data import check_trials, clear_hidden, is_trials

__all__ = ["Posterior", "infer"]

MAX_RHAT = 1.05
MAX_PARETO_K = 0.7


class Posterior(NamedTuple):
    """The posterior of one observation, as two functions.

    `sample(key, num_samples) -> theta` with leaves `[S, ...]`, and
    `log_prob(theta) -> scalar` for one theta, None where there is no density.
    """

    sample: Callable[[Array, int], PyTree]
    log_prob: Callable[[PyTree], Array] | None


def infer(estimator: Estimator, params: Params, x: PyTree) -> Posterior:
    """The posterior given one observation.

    Transparent to `jax.vmap`: over a batch of observations, map a function
    that calls `infer` and draws.

    Args:
        estimator: a trained estimator.
        params: its parameters.
        x: one observation, in the structure and shapes of the simulations;
            numpy arrays and Python numbers are converted.  `Trials` for the
            estimators of `iid`; NaN for missing entries with `with_missing`.

    Returns:
        The posterior; its functions are compiled on first use and shared by
        all observations.

    Raises:
        TypeError: an argument is not of its kind, or x does not hold real numbers.
        ValueError: x has another structure or shape than the simulations, or
            holds NaN or infinities.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior(dist.Normal(0.0, 1.0))
        >>> theta = jax.random.normal(jax.random.key(0), (100,))
        >>> npe = sj.make_npe(prior)
        >>> params = npe.init(jax.random.key(1), sj.make_simulations(theta, theta))
        >>> posterior = sj.infer(npe, params, 0.3)
        >>> posterior.sample(jax.random.key(2), 5).shape
        (5,)
    """
    order = "The order is infer(estimator, params, x)."
    check_record(estimator, Estimator, "estimator", order)
    check_record(params, Params, "params", order)
    example = params.stats.example.x
    x = (
        check_trials(x, example)
        if is_trials(x) and not is_trials(example)
        else clear_hidden(check_like(x, example, "x"))
    )
    check_finite(x, "x", example)

    def sample_fn(key: Array, num_samples: int) -> PyTree:
        check_key(key)
        num_samples = check_count(num_samples, "num_samples")
        theta, info = _sample(params, key, x, num_samples, estimator)
        _report(info)
        return theta

    def log_prob_fn(theta: PyTree) -> Array:
        return _log_prob(params, theta, x, estimator)

    return Posterior(sample_fn, None if estimator.log_prob is None else log_prob_fn)


@partial(jax.jit, static_argnames=("num_samples", "estimator"))
def _sample(
    params: Params, key: Array, x: PyTree, num_samples: int, estimator: Estimator
) -> tuple[PyTree, SampleInfo]:
    return estimator.sample(params, key, x, num_samples=num_samples)


@partial(jax.jit, static_argnames="estimator")
def _log_prob(params: Params, theta: PyTree, x: PyTree, estimator: Estimator) -> Array:
    assert estimator.log_prob is not None
    return estimator.log_prob(params, theta, x)


def _report(info: SampleInfo | ChainInfo | SolverInfo | AbcInfo) -> None:
    """Turn the concrete counts of an info record into readable warnings."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(info)):
        return
    faults = _faults(info)
    if isinstance(info, ChainInfo):
        faults += _chain_faults(info)
    if isinstance(info, AbcInfo):
        faults += _abc_faults(info)
    if isinstance(info, SolverInfo) and int(info.num_failed):
        faults.append(
            f"{int(info.num_failed)} draws stopped on the way after "
            f"{int(info.num_steps)} steps and are not from the posterior. Train "
            "longer, or give the estimator samplers.ode(max_num_steps=...) with more."
        )
    for fault in faults:
        warnings.warn(fault, SbijaxWarning, stacklevel=3)


def _faults(info: SampleInfo | ChainInfo | SolverInfo | AbcInfo) -> list[str]:
    faults = []
    if int(info.num_outside):
        faults.append(
            f"the observation lies outside the simulations in {int(info.num_outside)} "
            f"of {int(info.num_entries)} entries; the posterior extrapolates. "
            "Check units and the model (posterior_predictive helps), or widen the "
            "prior."
        )
    if int(info.num_invalid) and not isinstance(info, AbcInfo):
        faults.append(
            f"{int(info.num_invalid)} draws are not finite; train again, with a lower "
            "learning_rate or with more simulations."
        )
    return faults


def _abc_faults(info: AbcInfo) -> list[str]:
    num_simulations, last = int(info.num_simulations), int(info.num_populations)
    tolerance, share = float(info.tolerance[last]), float(info.acceptance[last])
    account = {
        2: f"SMC-ABC stopped at tolerance {tolerance:.3g} after {num_simulations} "
        f"simulations: only {100 * share:.2g} % of the last ones were close enough. "
        "Lower min_acceptance to go on, or compare summaries of fewer numbers.",
        3: f"none of {num_simulations} simulations was close enough, and the draws are "
        "NaN. Raise the tolerance, and look at what simulator, summary and distance "
        "return for one theta.",
        4: f"the budget of {num_simulations} simulations was spent at tolerance "
        f"{tolerance:.3g}, above min_tolerance. Raise num_simulations, or lower "
        "num_particles.",
    }
    faults = [text for code, text in account.items() if code == int(info.stop_reason)]
    num_failed = int(info.num_failed)
    if num_failed and not faults:
        faults.append(
            f"{num_failed} of {num_simulations} simulations have a distance that is "
            "NaN or negative and are left out. If that is more than you expect, look "
            "at what simulator, summary and distance return."
        )
    return faults


def _chain_faults(info: ChainInfo) -> list[str]:
    faults = []
    num_chains, num_failed = len(info.acceptance), int(info.num_failed)
    if num_failed:
        faults.append(
            f"{num_failed} of {num_chains} chains failed: no finite density, no move, "
            "or stopped before the end. "
            + (
                "The draws are not from the posterior. Check the observation and "
                "the training."
                if num_failed == num_chains
                else "Copies of the others stand in for them."
            )
        )
    largest = float(np.max(info.rhat))
    if largest > MAX_RHAT:
        faults.append(
            f"the chains disagree: R-hat is {largest:.2f}, above {MAX_RHAT}. Draw "
            "more, or give the estimator a sampler with more steps; tempered_smc "
            "copes best with several modes."
        )
    if int(info.num_divergent):
        faults.append(
            f"{int(info.num_divergent)} transitions diverged: corners of the "
            "posterior may be missing. Raise target_acceptance, or try tempered_smc."
        )
    pareto_k = float(info.pareto_k)
    if pareto_k > MAX_PARETO_K:
        faults.append(
            f"the importance weights fail: Pareto k is {pareto_k:.2f}, above "
            f"{MAX_PARETO_K}. The proposal misses part of the posterior; fit it "
            "longer, or use a Markov chain."
        )
    return faults
