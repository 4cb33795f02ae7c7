"""Priors: any numpyro distribution, dict of them, or model, with a vector form.

Everything downstream learns in R^D, where no posterior mass can fall outside
the prior.  A site `v` with distribution `d` has the vector form `z = f(v)`
with `f` a bijection from the support of `d` onto R^k, so that

    p(z) = p(v) |dv / dz|.

Two choices of `f` are offered: `to_normal`, the cdf followed by the normal
quantile, which makes `p(z)` standard normal, and `to_real`, numpyro's
`biject_to`, which looks at the support only.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from sbijax._quantiles import QuantileTable, tabulate
from sbijax.base import Array, Prior, PyTree
from sbijax.checks import check_key, describe

__all__ = ["SiteBijection", "make_prior", "to_normal", "to_real"]

_BARE = "theta"  # site name of a prior that is one distribution
_SIMPLEX_TOLERANCE = 1e-5


class SiteBijection(NamedTuple):
    """Bijection between the support of one distribution and R^k.

    `forward(value) -> z`, `inverse(z) -> value` and `log_det(z)`, the summed
    log |d value / d z|; `shape` is the shape of `z`.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    log_det: Callable[[Array], Array]
    shape: tuple[int, ...]


def make_prior(
    spec: dist.Distribution | dict[str, dist.Distribution] | Callable[[], Any],
    *,
    bijection: Callable[[dist.Distribution], SiteBijection] | None = None,
) -> Prior:
    """Make a prior with a vector form from numpyro distributions.

    Args:
        spec: a numpyro distribution (theta is an array of its shape), a dict
            of distributions (theta is a dict), or a numpyro model, a function
            without arguments whose sites may depend on each other (theta is a
            dict of its sites).
        bijection: maps a distribution to its `SiteBijection`; by default
            `to_normal`, under which the prior is standard normal in R^D
            wherever a cdf and a quantile function are known.

    Returns:
        The prior as a record of pure functions of one theta.

    Raises:
        TypeError: `spec` is none of the three, or a site is discrete.
        ValueError: no sites, or a model with observed sites.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> import sbijax as sj
        >>> prior = sj.make_prior({"rate": dist.LogNormal(0.0, 0.5)})
        >>> theta = prior.sample(jax.random.key(0))
        >>> prior.to_vector(theta).shape
        (1,)
    """
    bijection = to_normal if bijection is None else bijection
    model, pack, unpack = _as_model(spec)

    def visit(handle: Callable[[str, dist.Distribution], Array]) -> None:
        """Run the model with the value of every site given by `handle`."""

        def substitute(site: dict[str, Any]) -> Array | None:
            if site["type"] != "sample":
                return None
            return handle(site["name"], site["fn"])

        run = numpyro.handlers.substitute(model, substitute_fn=substitute)
        with numpyro.handlers.block():  # inside of another model, unseen by it
            run()

    def sample_fn(key: Array) -> PyTree:
        check_key(key)
        run = numpyro.handlers.trace(numpyro.handlers.seed(model, key))
        with numpyro.handlers.block():
            trace = run.get_trace()
        return pack({name: trace[name]["value"] for name in shapes})

    def log_prob_fn(theta: PyTree) -> Array:
        values = _check_sites(unpack(theta), shapes, pack)
        inside, total = jnp.array(True), jnp.zeros(())

        def handle(name: str, d: dist.Distribution) -> Array:
            nonlocal inside, total
            value, ok = _safe_value(d, values[name], bijection(d))
            inside, total = inside & ok, total + jnp.sum(d.log_prob(value))
            return value

        visit(handle)
        return jnp.where(inside & ~jnp.isnan(total), total, -jnp.inf)

    def to_vector_fn(theta: PyTree) -> Array:
        values = _check_sites(unpack(theta), shapes, pack)
        parts = []

        def handle(name: str, d: dist.Distribution) -> Array:
            f = bijection(d)
            z = f.forward(values[name])
            parts.append(jnp.ravel(z))
            return f.inverse(z)

        visit(handle)
        return jnp.concatenate(parts)

    def walk(z: Array) -> tuple[dict[str, Array], Array]:
        """Values of all sites and the summed log-determinant at `z`."""
        if jnp.shape(z) != (num_dims,):
            raise ValueError(
                f"expected a vector of shape ({num_dims},), got {describe(z)}; "
                "jax.vmap over further axes."
            )
        values, log_det, start = {}, jnp.zeros(()), 0

        def handle(name: str, d: dist.Distribution) -> Array:
            nonlocal log_det, start
            f = bijection(d)
            size = _size(f.shape)
            part = z[start : start + size].reshape(f.shape)
            start += size
            values[name] = f.inverse(part)
            log_det = log_det + f.log_det(part)
            return values[name]

        visit(handle)
        return values, log_det

    shapes, num_dims = _inspect(model, bijection)
    return Prior(
        sample=sample_fn,
        log_prob=log_prob_fn,
        to_vector=to_vector_fn,
        from_vector=lambda z: pack(walk(z)[0]),
        log_det=lambda z: walk(z)[1],
        num_dims=num_dims,
    )


def to_real(d: dist.Distribution) -> SiteBijection:
    """The bijection that numpyro's `biject_to` gives for the support of `d`.

    Values at or beyond a bound map to the largest finite coordinate.

    Example:
        >>> import numpyro.distributions as dist
        >>> from sbijax.priors import to_real
        >>> float(to_real(dist.Uniform(0.0, 2.0)).forward(1.0))
        0.0
    """
    transform = biject_to(d.support)
    bound = _coordinate_bound(d.support)

    def forward(value: Array) -> Array:
        z = transform._inverse(_clamp(d.support, jnp.asarray(value)))
        return z if bound is None else jnp.clip(jnp.nan_to_num(z), *bound)

    def inverse(z: Array) -> Array:
        return _clamp(d.support, transform(z))

    def log_det(z: Array) -> Array:
        return jnp.sum(transform.log_abs_det_jacobian(z, transform(z)))

    shape = tuple(transform.inverse_shape(tuple(d.shape())))
    return SiteBijection(forward, inverse, log_det, shape)


def to_normal(d: dist.Distribution) -> SiteBijection:
    """The bijection that turns `d` into a standard normal, where it is known.

    Normal, log-normal and multivariate normal distributions are whitened in
    closed form; gamma, beta and Student's t distributions go through a table of
    their quantiles, if their parameters are numbers or arrays of NumPy (neither
    drawn nor made by jax.numpy inside of a model); other univariate distributions
    go through their cdf; the rest (simplices, matrices, distributions without a
    quantile function) fall back on `to_real`.

    Example:
        >>> import numpyro.distributions as dist
        >>> from sbijax.priors import to_normal
        >>> round(float(to_normal(dist.Normal(1.0, 2.0)).forward(5.0)), 4)
        2.0
    """
    base = d
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    shape = tuple(d.shape())
    if type(base) is dist.Normal:
        return _affine(base.loc, base.scale, shape)
    if type(base) is dist.LogNormal:
        return _log_affine(base.loc, base.scale, shape)
    if type(base) is dist.MultivariateNormal and shape == base.event_shape:
        return _whitening(base.loc, base.scale_tril, shape)
    table = tabulate(base)
    if table is not None:
        return _through_table(base, table, to_real(d))
    if base.event_shape == () and _has_quantile(base):
        return _through_cdf(base, shape)
    return to_real(d)


def _affine(loc: Array, scale: Array, shape: tuple[int, ...]) -> SiteBijection:
    return SiteBijection(
        forward=lambda value: (value - loc) / scale,
        inverse=lambda z: loc + scale * z,
        log_det=lambda z: jnp.sum(jnp.broadcast_to(jnp.log(scale), shape)),
        shape=shape,
    )


def _log_affine(loc: Array, scale: Array, shape: tuple[int, ...]) -> SiteBijection:
    affine = _affine(loc, scale, shape)

    def forward(value: Array) -> Array:
        tiny = jnp.finfo(jnp.result_type(float)).tiny
        return affine.forward(jnp.log(jnp.maximum(value, tiny)))

    def log_det(z: Array) -> Array:
        return affine.log_det(z) + jnp.sum(affine.inverse(z))

    return SiteBijection(forward, lambda z: jnp.exp(affine.inverse(z)), log_det, shape)


def _whitening(loc: Array, tril: Array, shape: tuple[int, ...]) -> SiteBijection:
    def forward(value: Array) -> Array:
        return jax.scipy.linalg.solve_triangular(tril, value - loc, lower=True)

    log_det = jnp.sum(jnp.log(jnp.diagonal(tril)))
    return SiteBijection(forward, lambda z: loc + tril @ z, lambda z: log_det, shape)


def _through_cdf(d: dist.Distribution, shape: tuple[int, ...]) -> SiteBijection:
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    bound = -NormalDist().inv_cdf(eps)

    def forward(value: Array) -> Array:
        u = jnp.nan_to_num(d.cdf(value), nan=0.5)
        return ndtri(jnp.clip(u, eps, 1.0 - eps))

    def inverse(z: Array) -> Array:
        # Beyond the bound the cdf has no digits left: the image stays put.
        return _clamp(d.support, d.icdf(ndtr(jnp.clip(z, -bound, bound))))

    return SiteBijection(forward, inverse, _as_normal(d, inverse), shape)


def _through_table(
    d: dist.Distribution, table: QuantileTable, real: SiteBijection
) -> SiteBijection:
    """Normals to the real line by the table, and from there into the support."""
    bound = _coordinate_bound(d.support)

    def forward(value: Array) -> Array:
        return table.inverse(jnp.nan_to_num(real.forward(value)))

    def inverse(z: Array) -> Array:
        y = table.forward(z)
        return real.inverse(y if bound is None else jnp.clip(y, *bound))

    return SiteBijection(forward, inverse, _as_normal(d, inverse), real.shape)


def _as_normal(
    d: dist.Distribution, inverse: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """The log-determinant under which p(z) is normal, wherever the image may stop."""
    return lambda z: jnp.sum(norm.logpdf(z) - d.log_prob(inverse(z)))


def _has_quantile(d: dist.Distribution) -> bool:
    """Whether `d` implements a cdf and its inverse."""
    try:
        jax.eval_shape(lambda: d.icdf(d.cdf(d.mean)))
    except (NotImplementedError, AttributeError):
        return False
    return True


def _coordinate_bound(support: Any) -> tuple[float, float] | None:
    """Coordinates between which the image is finite, None where all of them are."""
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    info = jnp.finfo(jnp.result_type(float))
    tiny, eps = math.log(info.tiny), math.log(info.eps)
    half_lines = (constraints.positive, constraints.nonnegative)
    kinds = (type(constraints.greater_than(0.0)), type(constraints.less_than(0.0)))
    if inner in half_lines or isinstance(inner, kinds):
        return tiny, -tiny
    if inner is constraints.unit_interval:
        return tiny, -eps
    if inner is constraints.simplex or hasattr(inner, "upper_bound"):
        return eps, -eps
    return None


def _clamp(support: Any, value: Array) -> Array:
    """The nearest value inside a half-line or interval; undoes rounding."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    low: Any = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if isinstance(support, type(constraints.greater_than(0.0))):
        info = jnp.finfo(jnp.result_type(float))
        low = low + jnp.maximum(info.tiny, info.eps * jnp.abs(low))
    if low is None and high is None:
        return value
    return jnp.clip(value, low, high)


def _safe_value(
    d: dist.Distribution, value: Array, f: SiteBijection
) -> tuple[Array, Array]:
    """The value if it is inside the support, else a stand-in, and which it was."""
    value = jnp.asarray(value)
    if d.support is constraints.simplex:
        # Sums in float32 are off by more than numpyro's tolerance allows.
        total = jnp.sum(value, axis=-1, keepdims=True)
        near = jnp.abs(total - 1.0) < _SIMPLEX_TOLERANCE
        inside = jnp.all(near) & jnp.all(value >= 0)
        value = value / jnp.where(total > 0, total, 1.0)
    else:
        inside = jnp.all(d.support(value)) & jnp.all(jnp.isfinite(value))
    return jnp.where(inside, value, f.inverse(jnp.zeros(f.shape))), inside


def _as_model(spec: Any) -> tuple[Callable[[], Any], Callable, Callable]:
    """A numpyro model, and the maps from its sites to theta and back."""

    def identity(values: Any) -> Any:
        return values

    if isinstance(spec, dist.Distribution):
        return (
            lambda: numpyro.sample(_BARE, spec),
            lambda sites: sites[_BARE],
            lambda theta: {_BARE: theta},
        )
    if isinstance(spec, dict):
        for name, d in spec.items():
            if not isinstance(d, dist.Distribution):
                raise TypeError(
                    f"prior[{name!r}] must be a numpyro distribution, got "
                    f"{type(d).__name__}; write for example "
                    f"{{{name!r}: numpyro.distributions.Normal(0.0, 1.0)}}."
                )

        def model() -> None:
            for name in sorted(spec):
                numpyro.sample(name, spec[name])

        return model, identity, identity
    if callable(spec) and not isinstance(spec, type):
        return spec, identity, identity
    raise TypeError(
        "a prior must be a numpyro distribution, a dict of them, or a numpyro "
        f"model (a function without arguments), got {type(spec).__name__}."
    )


def _inspect(
    model: Callable[[], Any], bijection: Callable[[dist.Distribution], SiteBijection]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of the latent sites and the dimension of the vector form."""
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    try:
        trace = numpyro.handlers.trace(seeded).get_trace()
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            "the prior could not be sampled; it must be a proper numpyro "
            "distribution, a dict of them or a model without arguments. It said: "
            f"{str(error) or type(error).__name__}"
        ) from error
    shapes, num_dims = {}, 0
    for name, site in trace.items():
        if site["type"] == "plate" and len(site["value"]) != site["args"][0]:
            raise ValueError(
                f"plate {name!r} of the prior model draws a subsample; a prior "
                "needs all of its parameters. Leave out subsample_size."
            )
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            raise ValueError(
                f"site {name!r} of the prior model is observed; a prior has no "
                "data. Leave out obs= and numpyro.factor."
            )
        if isinstance(site["fn"], dist.Delta | dist.Unit):
            raise TypeError(
                f"site {name!r} is a constant ({type(site['fn']).__name__}), not a "
                "parameter; use numpyro.deterministic or a plain number for it."
            )
        if site["fn"].support.is_discrete:
            raise TypeError(
                f"site {name!r} is discrete ({type(site['fn']).__name__}); "
                "posteriors are learned for continuous parameters. "
                "Marginalise it inside the simulator."
            )
        shapes[name] = jnp.shape(site["value"])
        try:
            num_dims += _size(bijection(site["fn"]).shape)
        except NotImplementedError as error:
            raise TypeError(
                f"site {name!r} ({type(site['fn']).__name__}) has the support "
                f"{site['fn'].support}, for which no map to unconstrained space is "
                "known. Use a distribution on the reals, a half-line, an interval "
                "or a simplex, or give a bijection."
            ) from error
    if not shapes:
        raise ValueError("the prior has no parameters: it samples no site.")
    return shapes, num_dims


def _check_sites(
    values: PyTree, shapes: dict[str, tuple[int, ...]], pack: Callable
) -> dict[str, Array]:
    """Convert the sites of a theta to arrays, or say how they differ."""
    given = None
    if isinstance(values, dict) and jax.tree_util.all_leaves(values.values()):
        given = {name: np.shape(value) for name, value in values.items()}
    if given != shapes:
        bare = isinstance(values, dict) and set(values) == {_BARE}
        got = describe(values[_BARE] if bare else values)
        expected = pack({n: f"shape {s}" for n, s in shapes.items()})
        raise ValueError(
            f"theta does not fit the prior: got {got}, expected {expected}; "
            "jax.vmap over further axes."
        )
    return {name: jnp.asarray(value) for name, value in values.items()}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
