"""Records and contracts that every other module speaks.

An estimator is a record of four pure functions over an explicit parameter
pytree.  The contract of each function (shapes, meaning, who consumes the key)
is written once, on the `Protocol` of its name below.  Shape letters: `N`
simulations, `B` batch, `D` theta dimension, `S` draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

__all__ = [
    "AbcInfo",
    "Array",
    "ChainInfo",
    "Density",
    "DiffusionEstimator",
    "Estimator",
    "LazySimulations",
    "LikelihoodEstimator",
    "Network",
    "Params",
    "Prior",
    "PyTree",
    "RatioEstimator",
    "SampleInfo",
    "Sampler",
    "SbijaxWarning",
    "Simulations",
    "SolverInfo",
    "Standardizer",
    "Stats",
    "Target",
    "Trials",
]

Array = jax.Array
PyTree = Any


class SbijaxWarning(UserWarning):
    """An answer was returned, but something about it deserves a look."""


class Simulations(NamedTuple):
    """Pairs of parameters and data: the only data container.

    `theta` has leaves `[N, ...]` in the prior's structure (constrained space),
    `x` any pytree with leaves `[N, ...]`, and `weight` is `[N]`: 0 marks
    padding or a failed simulation, anything else is an importance weight.
    """

    theta: PyTree
    x: PyTree
    weight: Array


@runtime_checkable
class LazySimulations(Protocol):
    """Simulations that are read as they are asked for, and may exceed memory.

    `train` takes them in place of `Simulations`; `StoredSimulations` are some.

    Example:
        >>> import numpy as np
        >>> from sbijax import LazySimulations, Simulations
        >>> class Squares:
        ...     def __len__(self):
        ...         return 10_000_000
        ...     def __getitem__(self, rows):
        ...         theta = np.arange(rows.start, rows.stop, dtype=float)
        ...         return Simulations(theta, theta**2, np.ones(len(theta)))
        >>> isinstance(Squares(), LazySimulations)
        True
    """

    def __len__(self) -> int:
        """How many rows there are, `N`; the same number at every call."""
        ...

    def __getitem__(self, rows: slice, /) -> Simulations:
        """Rows `[a:b]`, leaves `[b - a, ...]` of numpy or JAX, for 0 <= a < b <= N.

        The same rows at every call.  Calls come one after another, but not all from
        the same thread.
        """
        ...


class Trials(NamedTuple):
    """Repeated x of one theta, or a set whose size varies; see `make_trials`.

    `x` has leaves `[T, ...]`, and `mask` `[T]` is True for trials that count;
    the others are padding, so that programs for one T serve fewer trials.  A
    method trained on single x takes them through `iid`; a simulator may also
    return `Trials`, for methods that embed them whole.
    """

    x: PyTree
    mask: Array


class Stats(NamedTuple):
    """What an estimator fits once in `init`; the optimizer never sees it.

    `example` is one simulation (leaves without axis 0, weight 1): it carries
    the structure of theta and x, and stands in for rows of weight 0.  `theta`
    and `x` hold the fitted standardisations, and `num_outside` counts simulations
    whose theta lies outside the prior's support, or whose discrete x has a value
    that was ruled out.
    """

    example: Simulations
    theta: PyTree
    x: PyTree
    num_outside: Array | int = 0


class Params(NamedTuple):
    """Parameters of an estimator: `net` is trained, `stats` is a `Stats`."""

    net: PyTree
    stats: PyTree


class InitFn(Protocol):
    """Make initial parameters and fit the data statistics."""

    def __call__(self, key: Array, sims: Simulations) -> Params:
        """Consume `key` for the initial weights; rows of weight 0 have no effect.

        `sims` are all simulations, or a random part of those that exceed memory.
        """
        ...


class LossFn(Protocol):
    """Scalar training objective, the weighted mean over a batch."""

    def __call__(self, params: Params, key: Array, batch: Simulations) -> Array:
        """Batch leaves are `[B, ...]`; `key` feeds stochastic objectives only."""
        ...


class LogProbFn(Protocol):
    """Log-density of one theta given one x."""

    def __call__(self, params: Params, theta: PyTree, x: PyTree) -> Array:
        """Return a scalar, -inf outside the prior's support, normalised or not."""
        ...


class SampleFn(Protocol):
    """Draws from the posterior of one x."""

    def __call__(
        self, params: Params, key: Array, x: PyTree, *, num_samples: int
    ) -> tuple[PyTree, Any]:
        """Return theta with leaves `[S, ...]` and a `SampleInfo`, or one widened."""
        ...


class SampleInfo(NamedTuple):
    """What every `sample` reports, as arrays; methods with more to say widen it.

    `num_invalid` counts draws that are not finite; `num_outside` counts
    entries of x outside the range of the simulations, out of `num_entries`.
    """

    num_invalid: Array
    num_outside: Array | int = 0
    num_entries: Array | int = 0


class ChainInfo(NamedTuple):
    """What a sampler reports, `SampleInfo` first; NaN where it cannot tell.

    `rhat` and `ess` (bulk, summed over chains) are `[D]`, rank-normalised,
    over the chains in unconstrained space; independent populations count as
    chains.  `acceptance` is `[C]`, the mean acceptance rate of each.
    `num_divergent` counts divergent transitions, `num_failed` chains that had
    no finite density, never moved or did not arrive: their draws are replaced
    by those of the others.  `log_evidence` estimates log p(x), and `pareto_k`
    is the tail index of importance weights, above 0.7 where they fail.
    """

    num_invalid: Array
    num_outside: Array
    num_entries: Array
    rhat: Array
    ess: Array
    acceptance: Array
    num_divergent: Array
    num_failed: Array
    log_evidence: Array
    pareto_k: Array


class SolverInfo(NamedTuple):
    """What draws along a differential equation report, `SampleInfo` first.

    `num_steps` counts the steps that were taken, rejected ones included, and
    `num_failed` the draws that did not arrive within the steps allowed.
    """

    num_invalid: Array
    num_outside: Array | int = 0
    num_entries: Array | int = 0
    num_steps: Array | int = 0
    num_failed: Array | int = 0


class AbcInfo(NamedTuple):
    """What approximate Bayesian computation reports, `SampleInfo` first.

    `tolerance`, `acceptance` and `population_ess` are `[P]`, one for each population
    and NaN after the last; `num_populations` counts those after the first.
    `num_simulations` is what was spent, `num_failed` how many of them had a distance
    that is NaN or negative.  `stop_reason` is 0 when the budget is spent, 1 when the
    tolerance asked for is reached, 2 when too few are accepted, 3 when nothing is, and
    4 when the budget is spent before the tolerance is reached.
    `theta` with leaves `[N, ...]`, `weight` and `distance` `[N]` are the particles,
    adjusted, that draws were resampled from.
    """

    num_invalid: Array
    num_outside: Array
    num_entries: Array
    tolerance: Array
    acceptance: Array
    population_ess: Array
    num_populations: Array
    num_simulations: Array
    num_failed: Array
    stop_reason: Array
    theta: PyTree
    weight: Array
    distance: Array


class Target(NamedTuple):
    """An unnormalised posterior on R^D, as samplers see it.

    `sample_prior(key) -> z` draws one `[D]`, `log_prior(z) -> scalar` is its
    density in R^D, log-determinant included, and `log_likelihood(z) -> scalar`
    the rest; where it is not a finite number there is no density.
    """

    sample_prior: Callable[[Array], Array]
    log_prior: Callable[[Array], Array]
    log_likelihood: Callable[[Array], Array]


class Sampler(Protocol):
    """Draws from a `Target`."""

    def __call__(
        self, key: Array, target: Target, *, num_samples: int
    ) -> tuple[Array, ChainInfo]:
        """Return positions `[C, n, D]` with C n >= `num_samples`, and the info.

        `num_outside` and `num_entries` are left at 0 for the estimator.
        """
        ...


class Estimator(NamedTuple):
    """A method of inference as four pure functions.

    `loss` is None for training-free methods, `log_prob` is None where there is
    no density.
    """

    init: InitFn
    loss: LossFn | None
    log_prob: LogProbFn | None
    sample: SampleFn


class EstimateLogProbFn(Protocol):
    """Log-density of one theta given one x, estimated without bias."""

    def __call__(
        self,
        params: Params,
        key: Array,
        theta: PyTree,
        x: PyTree,
        *,
        num_probes: int = 16,
    ) -> tuple[Array, Array]:
        """Return the mean over `num_probes` estimates and its standard error."""
        ...


class DiffusionEstimator(NamedTuple):
    """An `Estimator` whose density is that of a flow.

    `estimate_log_prob` costs one product with the derivative of the network per
    probe and step, where `log_prob` costs one per dimension of theta.

    `score_of_trials(params, x) -> ((w [D], noise) -> [D])` for `Trials` x of single x
    sums the scores sum_t grad_w log p(w | x_t) of w = `networks.linear.to_residual`
    of theta's vector form for features of 0, with normal noise of scale `noise`
    added to w.
    """

    init: InitFn
    loss: LossFn | None
    log_prob: LogProbFn | None
    sample: SampleFn
    estimate_log_prob: EstimateLogProbFn
    score_of_trials: Callable[[Params, Trials], Callable[[Array, Array], Array]]


class LikelihoodEstimator(NamedTuple):
    """An `Estimator` that has learned p(x | theta).

    `log_likelihood(params, theta, x) -> scalar` is normalised over x, of counts
    nearly so, for one theta and one x, and `emulate(params, key, theta) -> x` draws
    one x.
    """

    init: InitFn
    loss: LossFn | None
    log_prob: LogProbFn | None
    sample: SampleFn
    log_likelihood: LogProbFn
    emulate: Callable[[Params, Array, PyTree], PyTree]


class RatioEstimator(NamedTuple):
    """An `Estimator` that has learned p(x | theta) / p(x) up to a function of x.

    `log_ratio(params, theta, x) -> scalar` for one theta and one x.
    """

    init: InitFn
    loss: LossFn | None
    log_prob: LogProbFn | None
    sample: SampleFn
    log_ratio: LogProbFn

    @property
    def emulate(self) -> Callable[..., PyTree]:
        """Not there: draws of x need p(x | theta) itself."""
        raise AttributeError(
            "a ratio p(x | theta) / p(x) cannot emulate x. Train make_nle, which "
            "learns p(x | theta), on the same simulations."
        )


class Prior(NamedTuple):
    """A distribution over theta with a vector form in R^D.

    `sample(key) -> theta` draws one theta.  `log_prob(theta) -> scalar` is
    -inf outside the support and never NaN.  `to_vector(theta) -> [D]` maps to
    unconstrained space and is finite at the bounds, `from_vector(z) -> theta`
    is its inverse, and `log_det(z) -> scalar` is log |d theta / d z| at z.
    """

    sample: Callable[[Array], PyTree]
    log_prob: Callable[[PyTree], Array]
    to_vector: Callable[[PyTree], Array]
    from_vector: Callable[[Array], PyTree]
    log_det: Callable[[Array], Array]
    num_dims: int


class Network(NamedTuple):
    """A stateless network over explicit parameters.

    `init(key, *inputs) -> params` and `apply(params, *inputs) -> outputs`, on
    inputs of one example.  A flax.linen module already has this form.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


class Density(NamedTuple):
    """A conditional density on R^D given a context vector of length `H`.

    `init(key, y, context) -> net` for `y` of shape `[D]` and `context` `[H]`,
    `log_prob(net, y, context) -> scalar`, and
    `sample(net, key, context, *, shape) -> y` of `shape` `(S, D)`.
    """

    init: Callable[[Array, Array, Array], PyTree]
    log_prob: Callable[[PyTree, Array, Array], Array]
    sample: Callable[..., Array]


class Standardizer(NamedTuple):
    """A fitted elementwise bijection that brings data to order one.

    `fit(values, weight) -> stats` for leaves `[N, ...]` and one weight for each row
    `[N]`, or for each entry of a single leaf; `forward(stats,
    value)` and `inverse(stats, value)` on leaves `[...]` of one example, and
    `log_det(stats, value) -> scalar`, the log-determinant of `forward`.
    """

    fit: Callable[[PyTree, Array], PyTree]
    forward: Callable[[PyTree, PyTree], PyTree]
    inverse: Callable[[PyTree, PyTree], PyTree]
    log_det: Callable[[PyTree, PyTree], Array]
