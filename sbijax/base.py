"""Records and contracts that every other module speaks.

An estimator is a record of four pure functions over an explicit parameter
pytree.  The contract of each function (shapes, meaning, who consumes the key)
is written once, on the `Protocol` of its name below.  Shape letters: `N`
simulations, `B` batch, `D` theta dimension, `S` draws.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.checks import check_count, check_like, describe, is_real

__all__ = [
    "Array",
    "ChainInfo",
    "Density",
    "DiffusionEstimator",
    "Estimator",
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
    "check_trials",
    "clear_hidden",
    "count_invalid",
    "data_nodes",
    "fill_zero_weight",
    "holds_trials",
    "is_trials",
    "make_simulations",
    "make_trials",
    "where_rows",
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
        """Consume `key` for the initial weights; rows of weight 0 have no effect."""
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

    `log_likelihood(params, theta, x) -> scalar` is normalised over x, for one
    theta and one x, and `emulate(params, key, theta) -> x` draws one x.
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


def make_simulations(
    theta: PyTree, x: PyTree, weight: Array | None = None
) -> Simulations:
    """Build `Simulations` from arrays of any kind, with failed rows at weight 0.

    Args:
        theta: pytree with leaves `[N, ...]`, JAX or numpy arrays, or a list.
        x: pytree with leaves `[N, ...]`, likewise.
        weight: `[N]`, non-negative; by default 1 for every row.

    Returns:
        The simulations in the default floating dtype; rows with a non-finite
        theta or x have weight 0.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: no rows, lengths that differ, weights that are negative.

    Example:
        >>> import numpy as np
        >>> from sbijax import make_simulations
        >>> sims = make_simulations(np.zeros(3), np.array([[1.0], [np.nan], [2.0]]))
        >>> sims.weight.tolist()
        [1.0, 0.0, 1.0]
    """
    theta, x = _to_arrays(theta, "theta"), _to_arrays(x, "x")
    x = clear_hidden(x, batched=True)
    weights = None if weight is None else _to_arrays(weight, "weight")
    sizes = _num_rows({"theta": theta, "x": x, "weight": weights})
    if len(set(sizes.values())) != 1 or None in sizes.values():
        listing = ", ".join(f"{k}: {v}" for k, v in sizes.items())
        raise ValueError(
            "theta, x and weight must have one row per simulation, the same "
            f"number in each; got rows {listing}."
        )
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("there are no simulations: every array has 0 rows.")
    if weights is None:
        weights = jnp.ones(size)
    if jnp.shape(weights) != (size,):
        raise ValueError(f"weight must have shape ({size},), got {describe(weights)}.")
    if not isinstance(weights, jax.core.Tracer):
        if not bool(jnp.all((weights >= 0) & jnp.isfinite(weights))):
            raise ValueError("weight must be finite and not negative in every row.")
    valid = jnp.ones(size, bool)
    for leaf in jax.tree.leaves((theta, x)):
        valid &= jnp.all(jnp.isfinite(leaf).reshape(size, -1), axis=1)
    return Simulations(theta, x, jnp.where(valid, weights, 0.0))


def make_trials(x: PyTree, *, num_padded: int | None = None) -> Trials:
    """Wrap repeated observations of one theta, padded to a fixed number.

    Args:
        x: pytree with leaves `[T, ...]`, JAX or numpy arrays, or a list.
        num_padded: length to pad to, at least T; with one length for all data
            sets nothing is compiled again.  By default T.

    Returns:
        The trials, with padding of zeros that the mask hides.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: no trials, unequal numbers of them, or more than
            `num_padded`.

    Example:
        >>> import numpy as np
        >>> from sbijax.base import make_trials
        >>> make_trials(np.ones((3, 2)), num_padded=5).mask.tolist()
        [True, True, True, False, False]
    """
    x = _to_arrays(x, "x")
    sizes = _num_rows({"x": x})
    if len(set(sizes.values())) != 1 or None in sizes.values():
        listing = ", ".join(f"{k}: {v}" for k, v in sizes.items())
        raise ValueError(
            "every leaf of x must have one row per trial, the same number in "
            f"each; got rows {listing}."
        )
    size = next(iter(sizes.values()))
    if not size:
        raise ValueError("there are no trials: every array has 0 rows.")
    length = size if num_padded is None else check_count(num_padded, "num_padded")
    if length < size:
        raise ValueError(
            f"there are {size} trials, more than num_padded={length}. Raise it to "
            "the largest number of trials of any data set."
        )

    def pad(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, length - size)] + [(0, 0)] * (leaf.ndim - 1))

    return Trials(jax.tree.map(pad, x), jnp.arange(length) < size)


def check_trials(trials: Trials, example: PyTree) -> Trials:
    """Convert trials to the dtypes of one x, with `example` where the mask hides.

    Raises:
        TypeError: leaves that are not real numbers.
        ValueError: structure or shapes differ from `example`, or the mask has
            another length or hides everything.
    """
    sizes = _num_rows({"x": trials.x, "mask": trials.mask})
    if len(set(sizes.values())) != 1 or None in sizes.values():
        listing = ", ".join(f"{k}: {v}" for k, v in sizes.items())
        raise ValueError(
            "trials must have one row per trial and one entry of the mask for "
            f"each; got rows {listing}. Make them with make_trials(x)."
        )
    check_like(jax.tree.map(lambda leaf: leaf[0], trials.x), example, "one trial")
    mask = jnp.asarray(trials.mask) > 0
    if not isinstance(mask, jax.core.Tracer) and not bool(jnp.any(mask)):
        raise ValueError(
            f"the mask hides all {mask.size} trials; at least one has to count."
        )

    def convert(leaf: Array, default: Array) -> Array:
        return where_rows(mask, jnp.asarray(leaf, default.dtype), default)

    return Trials(jax.tree.map(convert, trials.x, example), mask)


def fill_zero_weight(batch: Simulations, example: Simulations) -> Simulations:
    """Replace rows of weight 0 by `example`, so that NaN there reaches nothing."""
    fill = partial(where_rows, batch.weight > 0)
    theta = jax.tree.map(fill, batch.theta, example.theta)
    x = jax.tree.map(fill, batch.x, example.x)
    return Simulations(theta, x, batch.weight)


def where_rows(keep: Array, leaf: Array, other: Array | float) -> Array:
    """Rows of a leaf `[N, ...]` where `keep` `[N]` is positive, `other` elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.base import where_rows
        >>> where_rows(jnp.array([1, 0]), jnp.ones((2, 3)), -1.0).sum(axis=1).tolist()
        [3.0, -3.0]
    """
    return jnp.where(keep.reshape((-1,) + (1,) * (leaf.ndim - 1)) > 0, leaf, other)


def data_nodes(x: PyTree) -> list:
    """The leaves of x, of which each `Trials` is one.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.base import data_nodes, make_trials
        >>> len(data_nodes({"number": jnp.zeros(2), "set": make_trials([1.0])}))
        2
    """
    return jax.tree.leaves(x, is_leaf=is_trials)


def holds_trials(x: PyTree) -> bool:
    """Whether any part of x is a `Trials`.

    Example:
        >>> from sbijax.base import holds_trials, make_trials
        >>> holds_trials({"set": make_trials([1.0])})
        True
    """
    return any(map(is_trials, data_nodes(x)))


def is_trials(node: PyTree) -> bool:
    """Whether x, or a part of it, is a `Trials`.

    Example:
        >>> from sbijax.base import is_trials, make_trials
        >>> is_trials(make_trials([1.0]))
        True
    """
    return isinstance(node, Trials)


def clear_hidden(x: PyTree, *, batched: bool = False) -> PyTree:
    """Zeros in the rows of `Trials` that the mask hides.

    Args:
        x: one x, or a batch of them.
        batched: whether the leaves have an axis of simulations.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.base import Trials, clear_hidden
        >>> x = Trials(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
        >>> clear_hidden(x).x.tolist()
        [1.0, 0.0]
    """

    def clear(node: PyTree) -> PyTree:
        if not is_trials(node):
            return node
        one = partial(where_rows, other=0.0)
        rows = jax.vmap(one) if batched else one
        return Trials(jax.tree.map(lambda a: rows(node.mask, a), node.x), node.mask)

    return jax.tree.map(clear, x, is_leaf=is_trials)


def count_invalid(draws: Array) -> Array:
    """How many rows of draws `[S, D]` are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from sbijax.base import count_invalid
        >>> int(count_invalid(jnp.array([[0.0, 1.0], [jnp.nan, 1.0]])))
        1
    """
    return jnp.sum(~jnp.all(jnp.isfinite(draws), axis=-1))


def _num_rows(trees: dict[str, PyTree]) -> dict[str, int | None]:
    """Length of axis 0 of every leaf by its name, None for a scalar."""
    return {
        f"{name}{jax.tree_util.keystr(path)}": leaf.shape[0] if leaf.ndim else None
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _to_arrays(tree: PyTree, name: str) -> PyTree:
    """Leaves as arrays of the default floating dtype; a list counts as an array."""
    if isinstance(tree, list):
        tree = np.asarray(tree)
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} holds no arrays: got {tree!r}.")

    def convert(leaf: Any) -> Array:
        if not is_real(leaf):
            raise TypeError(f"{name} must hold real numbers, got {describe(leaf)}.")
        with np.errstate(over="ignore"):  # too large is infinite: a failed row
            return jnp.asarray(leaf, jnp.result_type(float))

    return jax.tree.map(convert, tree)
