"""ABC against exact posteriors, its budget, its account and its bad input."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sbijax as sj
from sbijax import abc
from sbijax.abc.populations import ACCEPTANCE, BUDGET, NOTHING, TOLERANCE, UNREACHED

NORMAL = sj.make_prior(dist.Normal(0.0, 1.0))
X = 1.5  # the posterior of a mean is N(.75, 1 / 2)


def simulator(key, theta):
    return theta + jax.random.normal(key)


def absolute(s, observed):
    return jnp.abs(s - observed)


def start(make, prior=NORMAL, simulate=simulator, **options):
    """The estimator with what `init` makes of 200 simulations."""
    estimator = make(prior, simulate, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.SbijaxWarning)  # some of them are to fail
        sims = sj.simulate(jax.random.key(0), prior, simulate, 200, progress=False)
    return estimator, estimator.init(jax.random.key(1), sims)


def sample(estimator, params, x=X, seed=2, num_samples=2_000):
    run = jax.jit(estimator.sample, static_argnames="num_samples")
    return run(params, jax.random.key(seed), x, num_samples=num_samples)


def moments(info, vector=NORMAL.to_vector):
    """Mean and standard deviation of the weighted particles, and the ESS."""
    z = np.asarray(jax.vmap(vector)(info.theta), float)[:, 0]
    weight = np.asarray(info.weight, float)
    mean = weight @ z
    return mean, np.sqrt(weight @ (z - mean) ** 2), 1.0 / np.sum(weight**2)


@pytest.mark.parametrize("kernel", [abc.local_kernel(), abc.normal_kernel()])
def test_smc_abc_reaches_the_posterior_of_a_normal(kernel):
    estimator, params = start(
        sj.make_smc_abc, num_simulations=60_000, num_particles=2_000, kernel=kernel
    )
    found = []
    for seed in range(6):
        theta, info = sample(estimator, params, seed=seed)
        mean, sd, ess = moments(info)
        assert ess > 800
        assert abs(float(jnp.mean(theta)) - mean) < 0.05
        found.append((mean - 0.75, sd / 0.5**0.5 - 1.0))
        assert np.all(np.diff(info.tolerance) <= 0)
    # One run is off by .03 in both; tails that get lost show as a sd that is too small.
    assert np.all(np.abs(np.mean(found, axis=0)) < 0.045)


def test_smaller_tolerances_are_closer():
    errors = []
    for tolerance in (3.0, 1.0, 0.1):
        estimator, params = start(
            sj.make_rejection_abc,
            num_simulations=200_000,
            tolerance=tolerance,
            distance=absolute,
        )
        _, info = sample(estimator, params)
        mean, sd, ess = moments(info)
        errors.append(abs(mean - 0.75) + abs(sd - 0.5**0.5))
        # Given |x' - x| <= epsilon, x' uniform: its variance comes on top.
        assert float(info.tolerance[0]) == pytest.approx(tolerance)
        assert ess == pytest.approx(np.sum(np.asarray(info.distance) <= tolerance))
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]
    assert errors[2] < 0.03


def test_counts_with_tolerance_zero_are_exact():
    prior = sj.make_prior(dist.Exponential(1.0))

    def counts(key, theta):
        return jax.random.poisson(key, theta, (2,)).astype(float)

    x = jnp.array([2.0, 4.0])
    exact = stats.gamma(1.0 + 6.0, scale=1.0 / 3.0)
    summaries = {"summary": jnp.sum, "distance": absolute}
    rejection = start(
        sj.make_rejection_abc,
        prior,
        counts,
        tolerance=0.0,
        num_simulations=20_000,
        **summaries,
    )
    smc = start(
        sj.make_smc_abc,
        prior,
        counts,
        num_simulations=20_000,
        num_particles=500,
        **summaries,
    )
    for estimator, params in (rejection, smc):
        _, info = sample(estimator, params, x)
        assert int(info.stop_reason) == TOLERANCE
        inside = np.asarray(info.weight) > 0
        assert np.all(np.asarray(info.distance)[inside] == 0.0)
        mean, sd, ess = moments(info, lambda theta: jnp.atleast_1d(theta))
        assert ess > 100
        assert abs(mean - exact.mean()) < 4.0 * exact.std() / ess**0.5
        assert abs(sd / exact.std() - 1.0) < 4.0 / ess**0.5


@pytest.mark.parametrize("num_new", [100, 700, 1_000])
def test_weights_undo_the_proposals(num_new):
    # The posterior at the last tolerance; some of 500 centres are used, or each twice.
    estimator, params = start(
        sj.make_smc_abc, num_simulations=50_000, num_particles=1_000, num_new=num_new,
        min_tolerance=1.0, distance=absolute,
    )  # fmt: skip
    grid = np.linspace(-6.0, 6.0, 20_001)

    def exact(tolerance):
        low, high = X - tolerance - grid, X + tolerance - grid
        mass = stats.norm.pdf(grid) * (stats.norm.cdf(high) - stats.norm.cdf(low))
        mass /= mass.sum()
        mean = mass @ grid
        return mean, np.sqrt(mass @ (grid - mean) ** 2)

    off = []
    for seed in range(12):
        _, info = sample(estimator, params, seed=seed)
        assert int(info.stop_reason) == TOLERANCE
        last = float(info.tolerance[int(info.num_populations)])
        off.append(np.subtract(moments(info)[:2], exact(last)))
    error = np.std(off, axis=0, ddof=1) / 12**0.5
    assert np.all(np.abs(np.mean(off, axis=0)) < 4.0 * error)


def test_the_number_of_particles_follows_budget_and_dimensions():
    plane = sj.make_prior(dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def simulate_both(key, theta):
        return theta + jax.random.normal(key, (2,))

    for prior, simulate, x, size, expected in (
        (NORMAL, simulator, X, 10_000, 200),
        (plane, simulate_both, jnp.ones(2), 10_000, 400),
        (plane, simulate_both, jnp.ones(2), 100, 25),  # a quarter of the simulations
    ):
        estimator, params = start(
            sj.make_smc_abc, prior, simulate, num_simulations=size
        )
        _, info = sample(estimator, params, x, num_samples=10)
        assert info.weight.shape == (expected,)
        assert int(info.num_simulations) == size


@pytest.mark.parametrize("num_simulations", [1_000, 1_777])
def test_the_budget_is_exact(num_simulations):
    sizes = []

    def count(theta):
        sizes.append(np.size(theta))
        return np.asarray(theta)

    def counted(key, theta):
        theta = jax.pure_callback(count, theta, theta, vmap_method="broadcast_all")
        return simulator(key, theta)

    estimator, params = start(
        sj.make_smc_abc,
        simulate=counted,
        num_simulations=num_simulations,
        num_particles=500,
        min_acceptance=0.0,
    )
    sizes.clear()
    _, info = jax.block_until_ready(sample(estimator, params))
    assert sum(sizes) == num_simulations == int(info.num_simulations)
    assert int(info.stop_reason) == BUDGET


def test_linear_adjustment_is_exact_for_normals():
    estimator, params = start(
        sj.make_rejection_abc, num_simulations=40_000, quantile=0.5,
        adjustment=abc.linear_adjustment(),
    )  # fmt: skip
    mean, sd, ess = moments(sample(estimator, params)[1])
    assert abs(mean - 0.75) < 4.0 * 0.7 / ess**0.5
    assert abs(sd / 0.5**0.5 - 1.0) < 4.0 / (2.0 * ess) ** 0.5
    plain, params = start(sj.make_rejection_abc, num_simulations=40_000, quantile=0.5)
    assert moments(sample(plain, params)[1])[1] > 1.1 * sd


def test_trials_by_distances_of_samples():
    prior = sj.make_prior({"mean": dist.Normal(0.0, 1.0), "sd": dist.Uniform(0.5, 2.0)})

    def trials(key, theta):
        noise = jax.random.normal(key, (50,))
        return sj.Trials(theta["mean"] + theta["sd"] * noise, jnp.ones(50, bool))

    x = sj.make_trials(1.0 + 0.8 * stats.norm.ppf((np.arange(50) + 0.5) / 50))
    for distance in (abc.wasserstein(), abc.mmd()):
        estimator, params = start(
            sj.make_smc_abc, prior, trials, num_simulations=10_000, num_particles=500,
            distance=distance,
        )  # fmt: skip
        theta, _ = sample(estimator, params, x)
        assert abs(float(jnp.mean(theta["mean"])) - 1.0) < 0.15
        assert abs(float(jnp.mean(theta["sd"])) - 0.8) < 0.15
        assert float(jnp.std(theta["mean"])) < 0.3


def test_posterior_mean_of_a_trained_network_is_a_summary():
    def noisy(key, theta):
        return theta + 3.0 * jax.random.normal(key, (40,))

    sims = sj.simulate(jax.random.key(5), NORMAL, noisy, 2_000, progress=False)
    npe = sj.make_npe(NORMAL)
    npe_params = npe.init(jax.random.key(6), sims)  # starts at linear regression
    summary = abc.posterior_mean(npe, npe_params, NORMAL)
    estimator, params = start(
        sj.make_smc_abc, simulate=noisy, num_simulations=10_000, num_particles=500,
        summary=summary,
    )  # fmt: skip
    _, info = sample(estimator, params, jnp.full(40, 1.0))
    mean, sd, _ = moments(info)
    variance = 1.0 / (1.0 + 40.0 / 9.0)
    assert abs(mean - variance * 40.0 / 9.0) < 0.1
    assert abs(sd / variance**0.5 - 1.0) < 0.2


def broken(s, observed):
    return jnp.where(s > 0.0, jnp.abs(s - observed), jnp.nan)


@pytest.mark.parametrize(
    ("make", "options", "reason", "match"),
    [
        (
            sj.make_smc_abc,
            {"distance": lambda s, o: jnp.nan * s},
            NOTHING,
            "none of 500 simulations was close enough",
        ),
        (
            sj.make_rejection_abc,
            {"tolerance": 0.0},
            NOTHING,
            "none of 5000 simulations was close enough",
        ),
        (sj.make_smc_abc, {"min_acceptance": 0.2}, ACCEPTANCE, "stopped at tolerance"),
        (sj.make_smc_abc, {"min_tolerance": 1e-6}, UNREACHED, "above min_tolerance"),
        (sj.make_smc_abc, {"distance": broken}, BUDGET, "NaN or negative"),
        (sj.make_smc_abc, {"distance": lambda s, o: s - o}, BUDGET, "NaN or negative"),
    ],
)
def test_what_went_wrong_is_said(make, options, reason, match):
    if make is sj.make_smc_abc:
        options = {"num_particles": 500, "min_acceptance": 0.0} | options
    estimator, params = start(make, num_simulations=5_000, **options)
    with pytest.warns(sj.SbijaxWarning, match=match):
        theta = sj.infer(estimator, params, X).sample(jax.random.key(3), 100)
    assert np.all(np.isnan(theta)) == (reason == NOTHING)
    assert int(sample(estimator, params)[1].stop_reason) == reason


def test_failed_simulations_are_left_out():
    def fails(key, theta):
        return jnp.where(theta < 0.0, jnp.nan, simulator(key, theta))

    estimator, params = start(
        sj.make_smc_abc, simulate=fails, num_simulations=10_000, num_particles=500
    )
    theta, info = sample(estimator, params)
    assert np.all(np.asarray(theta) >= 0.0)
    assert int(info.num_failed) > 100


def test_reached_tolerance_stops_early():
    estimator, params = start(
        sj.make_smc_abc, num_simulations=50_000, num_particles=500, min_tolerance=0.2,
        distance=absolute,
    )  # fmt: skip
    _, info = sample(estimator, params)
    assert int(info.stop_reason) == TOLERANCE
    assert int(info.num_simulations) < 20_000
    assert float(jnp.nanmin(info.tolerance)) <= 0.2
    last = int(info.num_populations)
    assert np.all(np.isnan(info.tolerance[last + 1 :]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: sj.make_smc_abc(simulator, NORMAL), TypeError, "prior must be"),
        (lambda: sj.make_smc_abc(NORMAL, 3), TypeError, "simulator must be a function"),
        (
            lambda: sj.make_smc_abc(
                NORMAL, simulator, num_simulations=100, num_particles=200
            ),
            ValueError,
            "num_simulations=100 is less than num_particles=200",
        ),
        (
            lambda: sj.make_smc_abc(NORMAL, simulator, min_tolerance=-1.0),
            ValueError,
            "min_tolerance must not be negative",
        ),
        (
            lambda: sj.make_smc_abc(NORMAL, simulator, min_acceptance=1.0),
            ValueError,
            r"min_acceptance must lie in \[0, 1\)",
        ),
        (
            lambda: sj.make_smc_abc(NORMAL, simulator, kernel="normal"),
            TypeError,
            "kernel must be a function",
        ),
        (
            lambda: sj.make_rejection_abc(NORMAL, simulator, tolerance=-1.0),
            ValueError,
            "tolerance must not be negative",
        ),
        (
            lambda: sj.make_rejection_abc(NORMAL, simulator, num_simulations=50),
            ValueError,
            "keeps 1. Raise one of them",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_simulator_that_returns_something_else_is_refused():
    estimator = sj.make_smc_abc(NORMAL, lambda key, theta: jnp.ones(3))
    sims = sj.simulate(jax.random.key(0), NORMAL, simulator, 100, progress=False)
    params = estimator.init(jax.random.key(1), sims)
    with pytest.raises(ValueError, match="^a simulation has another"):
        sample(estimator, params)
