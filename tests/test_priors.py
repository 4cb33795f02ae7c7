"""Priors: every form, both bijections, bounds, validation and bad input."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

import sbijax as sj
from sbijax._quantiles import tabulate
from sbijax.priors import SiteBijection, to_normal, to_real


def dependent_model():
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    centre = numpyro.sample("centre", dist.Normal(0.0, scale))
    numpyro.deterministic("double", 2.0 * centre)
    upper = numpyro.sample("upper", dist.Uniform(0.0, 1.0 + scale))
    with numpyro.plate("groups", 2):
        numpyro.sample("effect", dist.Normal(centre + upper, 0.5 * scale))


def everything(theta):
    return ravel_pytree(theta)[0]


def without_last(theta):
    """The free coordinates of one or several simplex vectors."""
    return jnp.ravel(theta[..., :-1])


def below_diagonal(theta):
    rows, columns = np.tril_indices(theta.shape[-1], k=-1)
    return theta[rows, columns]


def in_the_plane(theta):
    """Coordinates of a zero-sum vector in an orthonormal basis of its plane."""
    return scipy.linalg.null_space(np.ones((1, theta.size))).T @ theta


COVARIANCE = jnp.array([[2.0, 0.8], [0.8, 1.0]])


class Row(NamedTuple):
    """One prior: how to build it, whether `to_normal` must give N(0, I)."""

    make: Callable[[], Any]
    normal: bool
    reduce: Callable[[Any], Any] = everything


ROWS = {
    "normal": Row(lambda: dist.Normal(3.0, 2.0), True),
    "lognormal": Row(lambda: dist.LogNormal(-0.1, 0.5), True),
    "uniform": Row(lambda: dist.Uniform(0.0, 0.1), True),
    "beta": Row(lambda: dist.Beta(2.0, 3.0), True),
    "gamma": Row(lambda: dist.Gamma(2.0, 3.0), True),
    "gammas": Row(
        lambda: dist.InverseGamma(jnp.array([3.0, 5.0]), 2.0).expand([2, 2]), True
    ),
    "student": Row(lambda: dist.StudentT(4.0, 1.0, 2.0), True),
    "exponential": Row(lambda: dist.Exponential(2.0), True),
    "half_cauchy": Row(lambda: dist.HalfCauchy(1.0), True),
    "truncated": Row(lambda: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0), True),
    "mixture": Row(
        lambda: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.3, 0.7])),
            dist.Normal(jnp.array([-2.0, 2.0]), 1.0),
        ),
        False,
    ),
    "integer_parameters": Row(lambda: dist.Normal(jnp.zeros((2, 3)), 2), True),
    "vector": Row(
        lambda: dist.Uniform(jnp.array([0.0, -2.0]), jnp.array([1.0, 5.0])), True
    ),
    "event": Row(lambda: dist.Exponential(2.0).expand([3]).to_event(1), True),
    "correlated": Row(
        lambda: dist.MultivariateNormal(jnp.array([1.0, -2.0]), COVARIANCE), True
    ),
    "simplex": Row(
        lambda: dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), False, without_last
    ),
    "simplex_event": Row(
        lambda: dist.Dirichlet(jnp.ones(3)).expand([2]).to_event(1),
        False,
        without_last,
    ),
    "correlation": Row(lambda: dist.LKJCholesky(3, 2.0), False, below_diagonal),
    "zero_sum": Row(lambda: dist.ZeroSumNormal(50.0, (3,)), False, in_the_plane),
    "dict": Row(
        lambda: {
            "rate": dist.LogNormal(0.0, 0.5),
            "bounded": dist.Uniform(-1.0, 1.0).expand([2]),
            "pair": dist.MultivariateNormal(jnp.zeros(2), COVARIANCE),
        },
        True,
    ),
    "model": Row(lambda: dependent_model, True),
}
BIJECTIONS = {"to_normal": to_normal, "to_real": to_real}
WITH_TO_REAL = ("uniform", "lognormal", "truncated", "vector", "dict", "model")
SLOW = ("correlation-to_normal", "half_cauchy-to_normal")


def pairs(names, with_to_real, slow=SLOW):
    """(name, bijection) as test parameters; ten seconds to compile are slow."""
    chosen = [(name, "to_normal") for name in names]
    chosen += [(name, "to_real") for name in with_to_real]
    return [
        pytest.param(
            pair,
            id="-".join(pair),
            marks=[pytest.mark.slow] if "-".join(pair) in slow else [],
        )
        for pair in chosen
    ]


NUM_DRAWS = 2_000


class Report(NamedTuple):
    """What one compiled program finds out about a prior."""

    theta: Any
    z: Any
    back: Any
    log_prob: Any
    log_det: Any
    slogdet: Any


def report(row: Row, bijection: Callable) -> tuple[sj.Prior, Report]:
    prior = sj.make_prior(row.make(), bijection=bijection)

    @jax.jit
    def run(keys):
        theta = jax.vmap(prior.sample)(keys)
        z = jax.vmap(prior.to_vector)(theta)

        def reduced(z):
            return row.reduce(prior.from_vector(z))

        few = z[:50]
        return Report(
            theta=theta,
            z=z,
            back=jax.vmap(prior.from_vector)(z),
            log_prob=jax.vmap(prior.log_prob)(theta),
            log_det=jax.vmap(prior.log_det)(few),
            slogdet=jnp.linalg.slogdet(jax.vmap(jax.jacfwd(reduced))(few))[1],
        )

    keys = jax.random.split(jax.random.key(3), NUM_DRAWS)
    return prior, jax.device_get(run(keys))


@pytest.fixture(scope="module", params=pairs(ROWS, WITH_TO_REAL))
def found(request):
    name, bijection = request.param
    return name, bijection, *report(ROWS[name], BIJECTIONS[bijection])


def test_vector_has_the_stated_dimension(found):
    _, _, prior, r = found
    assert r.z.shape == (NUM_DRAWS, prior.num_dims)
    assert np.all(np.isfinite(r.z))


def test_theta_has_one_structure(found):
    _, _, _, r = found
    assert jax.tree.structure(r.theta) == jax.tree.structure(r.back)
    for a, b in zip(jax.tree.leaves(r.theta), jax.tree.leaves(r.back), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype


def test_round_trip(found):
    # The cdf of a float32 has 6e-8 of absolute resolution, so in the tails the
    # relative error of a value grows: 99 % of the draws are judged strictly.
    _, _, _, r = found
    for a, b in zip(jax.tree.leaves(r.theta), jax.tree.leaves(r.back), strict=True):
        error = np.abs(a - b) / (1e-3 * np.std(a) + np.abs(a))
        assert np.quantile(error, 0.99) < 1e-3
        assert np.max(error) < 0.05


def test_log_det_is_that_of_the_jacobian(found):
    _, _, _, r = found
    assert np.all(np.isfinite(r.log_det))
    np.testing.assert_allclose(r.log_det, r.slogdet, rtol=2e-3, atol=2e-3)


def test_log_prob_of_draws_is_finite(found):
    _, _, _, r = found
    assert np.all(np.isfinite(r.log_prob))


def test_to_normal_is_standard_normal(found):
    name, bijection, prior, r = found
    if bijection != "to_normal" or not ROWS[name].normal:
        pytest.skip("no claim of normality")
    for d in range(prior.num_dims):
        # About 25 tests in all: a level of 1e-5 leaves no false alarm to expect.
        assert scipy.stats.kstest(r.z[:, d], "norm").pvalue > 1e-5
    # Independence of the coordinates: correlations are within 5 / sqrt(N).
    correlation = np.corrcoef(r.z.T).reshape(prior.num_dims, prior.num_dims)
    off = correlation - np.eye(prior.num_dims)
    assert np.max(np.abs(off)) < 5 / np.sqrt(NUM_DRAWS)


INTEGRABLE = ("lognormal", "uniform", "beta", "gamma", "truncated", "mixture")
# Under a float32, much of the mass is next to a bound.
POLES = {
    "beta": dist.Beta(1.0, 0.1),
    "beta_both": dist.Beta(0.1, 0.1),
    "gamma": dist.Gamma(0.05, 1.0),
}


@pytest.mark.parametrize("pair", pairs(INTEGRABLE, INTEGRABLE[:5]))
def test_density_in_vector_space_sums_to_one(pair):
    name, bijection = pair
    prior = sj.make_prior(ROWS[name].make(), bijection=BIJECTIONS[bijection])
    z = jnp.linspace(-30.0, 30.0, 60_001)[:, None]
    log_p = jax.jit(
        jax.vmap(lambda z: prior.log_prob(prior.from_vector(z)) + prior.log_det(z))
    )(z)
    total = np.trapezoid(np.exp(np.asarray(log_p, float)), np.asarray(z[:, 0], float))
    assert not np.any(np.isnan(log_p))
    np.testing.assert_allclose(total, 1.0, atol=1e-3)


@pytest.mark.parametrize("name", POLES)
def test_density_beside_a_pole_is_normal(name):
    prior = sj.make_prior(POLES[name])
    z = jnp.linspace(-12.0, 12.0, 4_801)[:, None]
    log_p = jax.jit(
        jax.vmap(lambda z: prior.log_prob(prior.from_vector(z)) + prior.log_det(z))
    )(z)
    np.testing.assert_allclose(log_p, scipy.stats.norm.logpdf(z[:, 0]), atol=1e-3)


ORACLES = {
    "uniform": (dist.Uniform(0.0, 0.1), scipy.stats.uniform(0.0, 0.1)),
    "beta": (dist.Beta(2.0, 3.0), scipy.stats.beta(2.0, 3.0)),
    "gamma": (dist.Gamma(2.0, 3.0), scipy.stats.gamma(2.0, scale=1 / 3.0)),
    "exponential": (dist.Exponential(2.0), scipy.stats.expon(scale=0.5)),
    "student": (dist.StudentT(4.0, 1.0, 2.0), scipy.stats.t(4.0, 1.0, 2.0)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_from_vector_of_normals_has_the_distribution(name):
    # The other direction of normality, against scipy's own cdf.
    distribution, frozen = ORACLES[name]
    prior = sj.make_prior(distribution)
    z = jax.random.normal(jax.random.key(5), (4_000, 1))
    theta = jax.jit(jax.vmap(prior.from_vector))(z)
    assert scipy.stats.kstest(np.asarray(theta), frozen.cdf).pvalue > 1e-3


TABLES = {
    "gamma": (dist.Gamma(2.0, 3.0), scipy.stats.gamma(2.0, scale=1 / 3.0)),
    "gamma_pole": (dist.Gamma(0.5, 1.0), scipy.stats.gamma(0.5)),
    "gamma_narrow": (dist.Gamma(1000.0, 1.0), scipy.stats.gamma(1000.0)),
    "chi2": (dist.Chi2(3.0), scipy.stats.chi2(3.0)),
    "inverse_gamma": (dist.InverseGamma(3.0, 2.0), scipy.stats.invgamma(3.0, scale=2)),
    "beta": (dist.Beta(2.0, 3.0), scipy.stats.beta(2.0, 3.0)),
    "beta_pole": (dist.Beta(0.5, 0.5), scipy.stats.beta(0.5, 0.5)),
    "beta_half": (dist.Beta(0.5, 2.0), scipy.stats.beta(0.5, 2.0)),
    "beta_mean": (dist.BetaProportion(0.9, 50.0), scipy.stats.beta(45.0, 5.0)),
    "student": (dist.StudentT(4.0, 1.0, 2.0), scipy.stats.t(4.0, 1.0, 2.0)),
    "cauchy": (dist.StudentT(1.0), scipy.stats.t(1.0)),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_quantile_function(name):
    distribution, frozen = TABLES[name]
    # Of float32 a beta's upper end has no digits beyond.
    upper = 3.0 if name.startswith("beta") else 7.9
    z = np.linspace(-7.9, upper, 1_001)
    with jax.enable_x64(True):
        f = to_normal(distribution)
        value = np.asarray(jax.vmap(f.inverse)(jnp.asarray(z)))
        log_det = np.asarray(jax.vmap(f.log_det)(jnp.asarray(z)))
        np.testing.assert_allclose(jax.vmap(f.forward)(value), z, atol=1e-9)
    found = np.where(
        z < 0,
        scipy.stats.norm.ppf(frozen.cdf(value)),
        scipy.stats.norm.isf(frozen.sf(value)),
    )
    np.testing.assert_allclose(found, z, atol=1e-3 if name == "cauchy" else 2e-5)
    exact = scipy.stats.norm.logpdf(z) - frozen.logpdf(value)
    np.testing.assert_allclose(log_det, exact, atol=1e-2 if name == "cauchy" else 1e-3)
    single = jax.vmap(to_normal(distribution).forward)(jnp.asarray(value, float))
    np.testing.assert_allclose(single, z, atol=2e-3)


def test_a_batch_is_tabulated_by_column():
    shapes = np.array([[0.5], [2.0], [30.0]])
    d = dist.Beta(jnp.asarray(shapes), jnp.array([1.0, 4.0])).to_event(1)
    prior = sj.make_prior(d)
    z = jax.random.normal(jax.random.key(0), (200, 6))
    theta = np.asarray(jax.vmap(prior.from_vector)(z))
    exact = scipy.stats.beta(shapes, [1.0, 4.0]).cdf(theta)
    expected = scipy.stats.norm.cdf(z.reshape(theta.shape))
    np.testing.assert_allclose(exact, expected, atol=1e-5)


@pytest.mark.parametrize(
    "d",
    [
        dist.Gamma(0.01, 1.0),  # below the smallest number
        dist.InverseGamma(0.05, 1.0),  # beyond the largest
        dist.Gamma(1e8, 1.0),  # too narrow for the numbers there
        dist.StudentT(0.3),  # too heavy in the tails
        dist.Normal(0.0, 1.0),  # known in closed form
    ],
)
def test_what_a_table_cannot_hold_has_none(d):
    assert tabulate(d) is None


def test_equal_distributions_share_a_column():
    table = tabulate(dist.Gamma(jnp.array([[2.0], [3.0], [2.0]]), jnp.ones(4)))
    assert table.value.shape == (129, 2)
    assert table.columns.tolist() == [[0] * 4, [1] * 4, [0] * 4]


def test_gradients_through_a_table_are_finite():
    f = to_normal(dist.Beta(0.5, 2.0))

    def log_density(z):
        return jnp.sum(f.inverse(z)) + f.log_det(z)

    z = jnp.array([-40.0, -8.0, -1.0, 0.0, 0.125, 3.0, 8.0, 40.0])
    assert np.all(np.isfinite(jax.vmap(jax.grad(log_density))(z)))
    for value in (np.nan, np.inf, -np.inf):
        for d in (dist.StudentT(4.0), dist.Gamma(2.0, 1.0), dist.Beta(2.0, 2.0)):
            assert np.isfinite(to_normal(d).forward(jnp.array(value)))


@pytest.mark.slow
def test_quantiles_under_parameters_that_are_drawn():
    def model():
        shape = numpyro.sample("shape", dist.Gamma(9.0, 3.0))
        numpyro.sample("rate", dist.Gamma(shape, 2.0))

    prior = sj.make_prior(model)
    z = jax.random.normal(jax.random.key(0), (200, 2))
    theta = jax.device_get(jax.jit(jax.vmap(prior.from_vector))(z))
    share = scipy.stats.gamma(theta["shape"], scale=0.5).cdf(theta["rate"])
    np.testing.assert_allclose(share, scipy.stats.norm.cdf(z[:, 1]), atol=1e-4)


# Name -> distribution, values at the bounds, values outside.
BOUNDED = {
    "uniform": (lambda: dist.Uniform(-1.0, 3.0), [-1.0, 3.0], [-1.001, 3.001]),
    "beta": (lambda: dist.Beta(2.0, 2.0), [0.0, 1.0], [-1e-6, 1.5]),
    "beta_pole": (lambda: dist.Beta(0.5, 0.5), [0.0, 1.0], [-0.1, 1.1]),
    "gamma": (lambda: dist.Gamma(2.0, 1.0), [0.0], [-1.0]),
    "gamma_pole": (lambda: dist.Gamma(0.5, 1.0), [0.0], [-1.0]),
    "exponential": (lambda: dist.Exponential(1.0), [0.0], [-0.1]),
    "lognormal": (lambda: dist.LogNormal(0.0, 1.0), [0.0], [-1.0]),
    "half_normal": (lambda: dist.HalfNormal(1.0), [0.0], [-1e-3]),
    "pareto": (lambda: dist.Pareto(1.0, 3.0), [1.0], [0.5, -2.0]),
    "truncated": (
        lambda: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=1.0),
        [-1.0, 1.0],
        [-2.0, 2.0],
    ),
    "simplex": (
        lambda: dist.Dirichlet(jnp.ones(3)),
        [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]],
        [[0.5, 0.6, 0.1], [1.5, -0.5, 0.0], [-0.1, 0.1, 1.0]],
    ),
}
NOT_FINITE = [np.nan, np.inf, -np.inf]


BOUNDED_PAIRS = pairs(BOUNDED, BOUNDED)


@pytest.mark.parametrize("pair", BOUNDED_PAIRS)
def test_bounds(pair):
    make, bounds, outside = BOUNDED[pair[0]]
    prior = sj.make_prior(make(), bijection=BIJECTIONS[pair[1]])

    @jax.jit
    def run(theta):
        z = prior.to_vector(theta)
        back = prior.from_vector(z)
        return (
            z,
            prior.log_det(z),
            prior.log_prob(theta),
            back,
            prior.log_prob(back),
        )

    for bound in bounds:
        z, log_det, log_prob, back, log_prob_back = run(jnp.asarray(bound))
        assert np.all(np.isfinite(z))
        assert np.isfinite(log_det)
        assert not np.isnan(log_prob)
        np.testing.assert_allclose(back, bound, atol=1e-2)
        assert not np.isnan(log_prob_back)
    broken = [np.full(np.shape(bounds[0]), v, np.float32) for v in NOT_FINITE]
    for theta in [*outside, *broken]:
        assert run(jnp.asarray(theta))[2] == -np.inf


@pytest.fixture(params=[True, False], ids=["validation", "no_validation"])
def validation(request):
    with numpyro.validation_enabled(request.param):
        yield request.param


@pytest.mark.parametrize("name", ["uniform", "lognormal", "pareto", "simplex"])
def test_bounds_of_concrete_values(name, validation):
    # numpyro looks at values, and warns, only where they are not traced.
    make, bounds, outside = BOUNDED[name]
    prior = sj.make_prior(make())
    for bound in bounds:
        assert not np.isnan(prior.log_prob(jnp.asarray(bound)))
        assert np.all(np.isfinite(prior.to_vector(jnp.asarray(bound))))
    broken = [np.full(np.shape(bounds[0]), v, np.float32) for v in NOT_FINITE]
    for theta in [*outside, *broken]:
        assert prior.log_prob(jnp.asarray(theta)) == -np.inf


@pytest.mark.parametrize("pair", BOUNDED_PAIRS)
def test_vectors_far_out_stay_inside_the_support(pair):
    name, bijection = pair
    prior = sj.make_prior(BOUNDED[name][0](), bijection=BIJECTIONS[bijection])

    @jax.jit
    def inside(z):
        return prior.log_prob(prior.from_vector(z))

    for value in (-40.0, -15.0, -6.0, 6.0, 15.0, 40.0):
        log_prob = inside(jnp.full(prior.num_dims, value))
        assert not np.isnan(log_prob)
        # Heavy-tailed log-densities may underflow far out, but only upwards.
        if value < 0 or name in ("uniform", "truncated"):
            assert log_prob > -np.inf, value


def test_dependent_model_outside_its_support(validation):
    prior = sj.make_prior(dependent_model)
    good = {"scale": 1.0, "centre": 0.5, "upper": 1.5, "effect": jnp.zeros(2)}
    assert np.isfinite(prior.log_prob(good))
    # `upper` is inside or outside depending on `scale`.
    assert prior.log_prob(good | {"scale": 0.2}) == -np.inf
    for name in ("scale", "centre", "upper"):
        for value in (np.nan, np.inf, -np.inf):
            assert prior.log_prob(good | {name: value}) == -np.inf
    assert prior.log_prob(good | {"scale": -1.0}) == -np.inf
    assert prior.log_prob(good | {"effect": jnp.array([0.0, np.nan])}) == -np.inf


def test_log_prob_values():
    prior = sj.make_prior(dependent_model)
    theta = {"scale": 1.0, "centre": 0.5, "upper": 1.5, "effect": jnp.array([1.0, 3.0])}
    expected = (
        scipy.stats.halfnorm(scale=2.0).logpdf(1.0)
        + scipy.stats.norm(0.0, 1.0).logpdf(0.5)
        - np.log(2.0)
        + scipy.stats.norm(2.0, 0.5).logpdf([1.0, 3.0]).sum()
    )
    np.testing.assert_allclose(prior.log_prob(theta), expected, rtol=1e-5)
    simplex = sj.make_prior(dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    p = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(
        simplex.log_prob(p),
        scipy.stats.dirichlet([1.0, 2.0, 3.0]).logpdf(p),
        rtol=1e-5,
    )


def test_simplex_outcome_does_not_depend_on_validation():
    # Sums of float32 draws are off by a few units in the last place.
    theta = jnp.array([0.2, 0.3, 0.500005])
    values = []
    for enabled in (True, False):
        with numpyro.validation_enabled(enabled):
            values.append(sj.make_prior(dist.Dirichlet(jnp.ones(3))).log_prob(theta))
    assert values[0] == values[1]
    assert np.isfinite(values[0])


def test_gradients_of_log_prob_are_finite_inside_and_not_nan_outside():
    prior = sj.make_prior(ROWS["dict"].make())
    grad = jax.jit(jax.grad(prior.log_prob))
    inside = {"rate": 1.0, "bounded": jnp.array([0.5, -0.5]), "pair": jnp.zeros(2)}
    outside = inside | {"rate": -1.0}
    assert np.all(np.isfinite(everything(grad(inside))))
    assert not np.any(np.isnan(everything(grad(outside))))


def test_gradients_in_vector_space_are_finite():
    # What a sampler in vector space sees, far out as well.
    prior = sj.make_prior(ROWS["model"].make())

    def log_density(z):
        return prior.log_prob(prior.from_vector(z)) + prior.log_det(z)

    z = jnp.linspace(-4.0, 4.0, 9)[:, None] * jnp.ones(prior.num_dims)
    assert np.all(np.isfinite(jax.jit(jax.vmap(jax.grad(log_density)))(z)))


def test_jit_and_vmap_agree_with_eager():
    prior = sj.make_prior(dependent_model)
    keys = jax.random.split(jax.random.key(0), 3)
    theta = jax.jit(jax.vmap(prior.sample))(keys)
    for i, key in enumerate(keys):
        with jax.debug_key_reuse(False):
            one = prior.sample(key)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(theta), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-6)
    z = jax.jit(jax.vmap(prior.to_vector))(theta)
    first = jax.tree.map(lambda leaf: leaf[0], theta)
    np.testing.assert_allclose(prior.to_vector(first), z[0], rtol=1e-5)


def test_deterministic_sites_are_no_parameters():
    prior = sj.make_prior(dependent_model)
    theta = prior.sample(jax.random.key(0))
    assert set(theta) == {"scale", "centre", "upper", "effect"}
    assert prior.num_dims == 5


def test_numbers_of_any_kind_are_converted():
    prior = sj.make_prior({"a": dist.Normal(0.0, 1.0), "b": dist.Exponential(1.0)})
    expected = prior.log_prob({"a": jnp.array(1.0), "b": jnp.array(2.0)})
    for one, two in ((1, 2), (1.0, 2.0), (np.float64(1.0), np.int64(2))):
        theta = {"a": one, "b": two}
        np.testing.assert_allclose(prior.log_prob(theta), expected, rtol=1e-6)
        np.testing.assert_allclose(
            prior.from_vector(prior.to_vector(theta))["b"], 2.0, rtol=1e-5
        )


def test_own_bijection_is_used():
    def double(d: dist.Distribution) -> SiteBijection:
        return SiteBijection(
            forward=lambda v: 2.0 * v,
            inverse=lambda z: z / 2.0,
            log_det=lambda z: jnp.sum(jnp.full(d.shape(), -jnp.log(2.0))),
            shape=tuple(d.shape()),
        )

    prior = sj.make_prior(dist.Normal(jnp.zeros(2), 1.0), bijection=double)
    assert prior.to_vector(jnp.array([1.0, 2.0])).tolist() == [2.0, 4.0]
    np.testing.assert_allclose(prior.log_det(jnp.zeros(2)), -2 * np.log(2.0), rtol=1e-6)


SITES = st.dictionaries(
    st.text("abcxyz", min_size=1, max_size=3),
    st.tuples(
        st.sampled_from(["normal", "uniform", "exponential", "dirichlet"]),
        st.lists(st.integers(1, 3), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(sites=SITES)
def test_any_dict_of_distributions(sites):
    make = {
        "normal": lambda shape: dist.Normal(1.0, 2.0).expand(shape),
        "uniform": lambda shape: dist.Uniform(-1.0, 1.0).expand(shape).to_event(),
        "exponential": lambda shape: dist.Exponential(1.0).expand(shape),
        "dirichlet": lambda shape: dist.Dirichlet(jnp.ones(3)).expand(shape),
    }
    prior = sj.make_prior({name: make[kind](s) for name, (kind, s) in sites.items()})
    sizes = [
        int(np.prod(shape)) * (2 if kind == "dirichlet" else 1)
        for kind, shape in sites.values()
    ]
    assert prior.num_dims == sum(sizes)

    @jax.jit
    def run(key):
        theta = prior.sample(key)
        z = prior.to_vector(theta)
        return theta, z, prior.from_vector(z), prior.log_prob(theta), prior.log_det(z)

    theta, z, back, log_prob, log_det = run(jax.random.key(0))
    assert z.shape == (prior.num_dims,)
    assert np.shape(log_prob) == np.shape(log_det) == ()
    assert np.isfinite(log_prob)
    assert np.isfinite(log_det)
    for name, (kind, shape) in sites.items():
        expected = (*shape, 3) if kind == "dirichlet" else shape
        assert theta[name].shape == expected
        np.testing.assert_allclose(back[name], theta[name], rtol=1e-3, atol=1e-4)


def observed_model():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("data", dist.Normal(mean, 1.0), obs=1.0)


def factor_model():
    numpyro.factor("extra", numpyro.sample("mean", dist.Normal(0.0, 1.0)))


def subsampled_model():
    with numpyro.plate("groups", 10, subsample_size=3):
        numpyro.sample("effect", dist.Normal(0.0, 1.0))


def discrete_model():
    numpyro.sample("count", dist.Poisson(3.0))


BAD_PRIORS = {
    "number": (lambda: 3.0, TypeError, "numpyro distribution.*got float"),
    "class": (lambda: dist.Normal, TypeError, "numpyro distribution"),
    "none": (lambda: None, TypeError, "got NoneType"),
    "list": (lambda: [dist.Normal(0.0, 1.0)], TypeError, "got list"),
    "dict_value": (lambda: {"a": 1.0}, TypeError, r"prior\['a'\].*got float"),
    "empty": (lambda: {}, ValueError, "no parameters"),
    "silent_model": (lambda: lambda: 3, ValueError, "no parameters"),
    "model_arguments": (lambda: lambda x: x, TypeError, "without arguments"),
    "observed": (lambda: observed_model, ValueError, "'data'.*observed"),
    "factor": (lambda: factor_model, ValueError, "'extra'.*observed"),
    # numpyro's own subsampling does not pass the key-reuse check.
    "subsample": (lambda: subsampled_model, ValueError, "groups.*subsample"),
    "discrete": (lambda: dist.Poisson(3.0), TypeError, "discrete.*Poisson"),
    "discrete_model": (lambda: discrete_model, TypeError, "'count' is discrete"),
    "constant": (lambda: {"a": dist.Delta(1.0)}, TypeError, "'a'.*constant"),
    "sphere": (lambda: dist.ProjectedNormal(jnp.ones(3)), TypeError, "support"),
    "improper": (
        lambda: dist.ImproperUniform(constraints.positive, (), ()),
        TypeError,
        "could not be sampled",
    ),
}


@pytest.mark.parametrize("name", BAD_PRIORS)
def test_bad_priors_are_refused(name):
    make, error, message = BAD_PRIORS[name]
    reuse = jax.debug_key_reuse(False)
    with reuse, pytest.raises(error, match=message):
        sj.make_prior(make())


BAD_THETAS = {
    "missing": {"a": 0.5},
    "other_name": {"a": 0.5, "c": 0.0},
    "extra": {"a": 0.5, "b": 0.0, "c": 0.0},
    "bare": 0.5,
    "list": [0.5, 0.0],
    "batch": {"a": np.zeros(3), "b": np.zeros(3)},
    "nested": {"a": {"a": 0.5}, "b": 0.0},
    "none": None,
}


@pytest.mark.parametrize("name", BAD_THETAS)
@pytest.mark.parametrize("function", ["log_prob", "to_vector"])
def test_theta_of_another_structure_is_refused(name, function):
    prior = sj.make_prior({"a": dist.Beta(2.0, 2.0), "b": dist.Normal(0.0, 1.0)})
    with pytest.raises(ValueError, match="theta does not fit the prior"):
        getattr(prior, function)(BAD_THETAS[name])


@pytest.mark.parametrize("theta", [np.zeros(3), {"theta": 0.0}, {"a": 0.0}, [0.0]])
def test_theta_of_another_structure_is_refused_by_a_bare_prior(theta):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="theta does not fit the prior"):
        prior.log_prob(theta)


@pytest.mark.parametrize("function", ["from_vector", "log_det"])
@pytest.mark.parametrize("shape", [(), (2,), (1, 1)])
def test_vector_of_another_length_is_refused(function, shape):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        getattr(prior, function)(jnp.zeros(shape))


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: 0,
        lambda: jnp.zeros(2, jnp.uint32),
        lambda: jax.random.split(jax.random.key(0), 2),
    ],
    ids=["integer", "raw", "batch"],
)
def test_sample_refuses_other_keys(make_key):
    prior = sj.make_prior(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match="PRNG key"):
        prior.sample(make_key())


def test_sample_consumes_its_key():
    prior = sj.make_prior(dependent_model)
    key = jax.random.key(0)
    with jax.debug_key_reuse(True):
        prior.sample(key)
        with pytest.raises(jax.errors.KeyReuseError):
            prior.sample(key)


def test_a_prior_inside_of_another_model_is_not_seen_by_it():
    prior = sj.make_prior({"level": dist.Normal(0.0, 1.0)})

    def model():
        with numpyro.plate("subjects", 3):
            level = numpyro.sample("level", dist.Normal(2.0, 1.0))
            theta = prior.sample(jax.random.key(1))
            assert theta["level"].shape == ()
            z = jax.vmap(prior.to_vector)({"level": level})
            jax.vmap(prior.log_prob)({"level": level})
            numpyro.deterministic("z", z[:, 0])

    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    trace = numpyro.handlers.trace(seeded).get_trace()
    assert set(trace) == {"subjects", "level", "z"}
    np.testing.assert_array_equal(trace["z"]["value"], trace["level"]["value"])
