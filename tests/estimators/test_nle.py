"""What NLE adds to the contract: its likelihood, emulator and discrete data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import sbijax as sj
from sbijax.samplers import importance_resampling, nuts

PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


def make_sims(num=200):
    theta, noise, coin = jax.random.normal(jax.random.key(0), (3, num))
    x = {"choice": (theta + coin > 0.0).astype(jnp.float32), "time": theta + noise}
    return sj.make_simulations(theta, x)


def make(num_categories, **options):
    nle = sj.make_nle(
        PRIOR,
        num_categories=num_categories,
        density=sj.densities.maf(num_layers=1, hidden_size=8),
        embedding=sj.networks.mlp(4, hidden_sizes=(8,)),
        **options,
    )
    return nle, nle.init(jax.random.key(1), make_sims())


@pytest.fixture(scope="module")
def mixed():
    nle, params = make({"choice": 2, "time": 0})
    leaves, structure = jax.tree.flatten(params.net)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return nle, params._replace(net=jax.tree.unflatten(structure, moved))


def test_likelihood_is_normalised_over_x(mixed):
    nle, params = mixed
    time = jnp.linspace(-60.0, 60.0, 12_001)
    score = jax.jit(
        jax.vmap(
            lambda c, t: nle.log_likelihood(params, 0.4, {"choice": c, "time": t}),
            (None, 0),
        )
    )
    step = float(time[1] - time[0])
    total = sum(float(jnp.sum(jnp.exp(score(c, time)))) * step for c in (0.0, 1.0))
    assert abs(total - 1.0) < 1e-2


def test_emulated_data_follow_the_likelihood(mixed):
    # E[q'(x) / q(x)] is 1 under q for any density q'.
    nle, params = mixed
    keys = jax.random.split(jax.random.key(3), 4_000)
    x = jax.jit(jax.vmap(lambda k: nle.emulate(params, k, 0.4)))(keys)
    assert set(np.unique(x["choice"])) == {0.0, 1.0}
    score = jax.jit(jax.vmap(nle.log_likelihood, (None, None, 0)))
    log_ratio = score(params, 0.6, x) - score(params, 0.4, x)
    ratio = np.exp(np.asarray(log_ratio, float))
    assert ratio.std() > 0.01
    assert abs(ratio.mean() - 1.0) < 5 * ratio.std() / len(ratio) ** 0.5


def test_the_continuous_entries_depend_on_the_discrete_ones(mixed):
    nle, params = mixed
    score = jax.vmap(
        lambda c, t: nle.log_likelihood(params, 0.4, {"choice": c, "time": t}),
        (None, 0),
    )
    time = jnp.linspace(-1.0, 1.0, 5)
    assert np.ptp(score(0.0, time) - score(1.0, time)) > 1e-3


def test_emulator_is_one_program_for_many_thetas(mixed):
    nle, params = mixed
    emulate = jax.jit(jax.vmap(lambda k, t: nle.emulate(params, k, t)))
    keys = jax.random.split(jax.random.key(4), 7)
    x = emulate(keys, jnp.linspace(-1.0, 1.0, 7))
    assert jax.tree.map(jnp.shape, x) == {"choice": (7,), "time": (7,)}


def test_log_prob_is_likelihood_plus_prior(mixed):
    nle, params = mixed
    x = {"choice": 1.0, "time": 0.3}
    expected = nle.log_likelihood(params, 0.4, x) + PRIOR.log_prob(0.4)
    np.testing.assert_allclose(nle.log_prob(params, 0.4, x), expected, rtol=1e-6)


def test_impossible_values_have_no_likelihood(mixed):
    nle, params = mixed
    for choice in (2.0, -1.0, 0.5, jnp.nan, jnp.inf):
        x = {"choice": choice, "time": 0.3}
        assert nle.log_likelihood(params, 0.4, x) == -jnp.inf


@pytest.mark.filterwarnings("ignore:training used all")
def test_simulations_with_impossible_values_are_counted_and_do_no_harm():
    sims = make_sims()
    nle, _ = make({"choice": 2, "time": 0})
    x = sims.x | {"choice": sims.x["choice"].at[:20].set(7.0)}
    params = nle.init(jax.random.key(1), sims._replace(x=x))
    assert int(params.stats.num_outside) == 20
    loss, grads = jax.value_and_grad(
        lambda net: nle.loss(
            params._replace(net=net), jax.random.key(3), sims._replace(x=x)
        )
    )(params.net)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    with pytest.warns(sj.SbijaxWarning, match="outside its num_categories"):
        sj.train(
            jax.random.key(2),
            nle,
            sims._replace(x=x),
            max_epochs=1,
            progress=False,
        )


@pytest.mark.parametrize("bad", [2, {"choice": 2}, {"choice": 2, "time": 0, "c": 0}])
def test_num_categories_has_the_structure_of_x(bad):
    with pytest.raises(ValueError, match="one number for each leaf of x"):
        make(bad)


def test_bad_configuration_is_refused():
    for options in ({"density": 1}, {"embedding": 1}, {"standardizer": 1}):
        with pytest.raises(TypeError, match=next(iter(options))):
            sj.make_nle(PRIOR, **options)
    with pytest.raises(ValueError, match="num_categories"):
        sj.make_nle(PRIOR, num_categories=-1)
    matrix = sj.Network(lambda key, *inputs: {}, lambda net, *inputs: jnp.zeros((2, 2)))
    nle = sj.make_nle(PRIOR, embedding=matrix)
    with pytest.raises(ValueError, match="embedding must map one theta to a vector"):
        nle.init(jax.random.key(1), sj.make_simulations(jnp.ones(9), jnp.ones(9)))


@pytest.fixture(scope="module")
def counted():
    """A Poisson and a binomial count, and the normal that goes with them."""
    prior = sj.make_prior(dist.Uniform(0.0, 1.0))

    def simulator(key, theta):
        keys = jax.random.split(key, 3)
        with jax.debug_key_reuse(False):  # of its loops
            few = jax.random.poisson(keys[0], 4.0 * theta)
            many = jax.random.binomial(keys[1], 200.0, 0.1 + 0.8 * theta)
        time = theta + 0.3 * jax.random.normal(keys[2])
        return {"few": few, "many": many, "time": time}

    def log_likelihood(theta, x):
        return (
            scipy.stats.poisson.logpmf(x["few"], 4.0 * theta)
            + scipy.stats.binom.logpmf(x["many"], 200, 0.1 + 0.8 * theta)
            + scipy.stats.norm.logpdf(x["time"], theta, 0.3)
        )

    keys = jax.random.split(jax.random.key(0), 3)
    sims, test = (
        sj.simulate(key, prior, simulator, size, progress=False)
        for key, size in zip(keys[:2], (2_000, 4_000), strict=True)
    )
    nle = sj.make_nle(prior)
    params, info = sj.train(keys[2], nle, sims, progress=False)
    return nle, params, info, test, log_likelihood


def test_counts_have_probabilities(counted):
    # A density learned from whole numbers as they are narrows down on them: it would
    # be nats above the probabilities.  The bound that is trained on is below them.
    nle, params, info, test, log_likelihood = counted
    score = jax.jit(jax.vmap(nle.log_likelihood, (None, 0, 0)))
    learned = np.asarray(score(params, test.theta, test.x), float)
    exact = log_likelihood(
        np.asarray(test.theta, float), jax.tree.map(np.asarray, test.x)
    )
    error = (exact - learned).std() / len(exact) ** 0.5
    assert -0.1 < np.mean(exact - learned) < 0.2
    assert error < 0.02
    assert -0.1 < float(info.best_loss) + exact.mean() < 0.4


def test_the_probabilities_of_a_count_sum_to_one(counted):
    # Nearly: the density in the middle of a cell is not quite its mean.
    nle, params, *_ = counted
    few = jnp.arange(30.0)
    many = jnp.arange(201.0)
    score = jax.jit(
        jax.vmap(jax.vmap(nle.log_likelihood, (None, None, 0)), (None, None, 0))
    )
    times = jnp.linspace(-1.5, 2.5, 41)
    for theta in (0.2, 0.6):
        near = jnp.abs(many - 200 * (0.1 + 0.8 * theta)) < 45
        total = 0.0
        for time in times:
            x = {
                "few": jnp.broadcast_to(few[:, None], (30, 201)),
                "many": jnp.broadcast_to(many, (30, 201)),
                "time": jnp.full((30, 201), time),
            }
            total += float(jnp.sum(jnp.exp(score(params, theta, x)) * near)) * 0.1
        assert abs(total - 1.0) < 0.05


@pytest.mark.parametrize("rate", [0.02, 4.0])
def test_few_different_counts_start_as_well(rate):
    # The noise of a row is its own also where many rows hold the same number.
    theta_key, x_key = jax.random.split(jax.random.key(0))
    theta = jax.random.normal(theta_key, (2_000,))
    with jax.debug_key_reuse(False):  # of its loops
        x = jax.random.poisson(x_key, rate * jnp.exp(0.3 * theta)).astype(float)
    sims = sj.make_simulations(theta, x)
    nle = sj.make_nle(PRIOR)
    start = jax.jit(lambda key: nle.loss(nle.init(key, sims), jax.random.key(9), sims))
    losses = [float(start(jax.random.key(seed))) for seed in range(3)]
    exact = -np.mean(scipy.stats.poisson.logpmf(x, rate * np.exp(0.3 * theta)))
    assert np.ptp(losses) < 0.05
    assert exact - 0.05 < np.mean(losses) < exact + 0.6


def test_counts_that_cannot_be_have_no_likelihood(counted):
    nle, params, *_ = counted
    x = {"few": -1.0, "many": 100.0, "time": 0.5}
    assert nle.log_likelihood(params, 0.5, x) == -jnp.inf
    assert np.isfinite(nle.log_likelihood(params, 0.5, x | {"few": 1.0}))


def test_posteriors_given_counts_are_exact(counted):
    nle, params, _, _, log_likelihood = counted
    grid = np.linspace(0.0005, 0.9995, 1_000)
    observations = (
        {"few": 0.0, "many": 30.0, "time": 0.2},
        {"few": 4.0, "many": 120.0, "time": 0.9},
    )
    for x in observations:
        exact = np.exp(log_likelihood(grid, x) - log_likelihood(grid, x).max())
        exact /= exact.sum()
        learned = jax.vmap(nle.log_prob, (None, 0, None))(params, grid, x)
        learned = np.exp(learned - learned.max())
        learned /= learned.sum()
        mean = exact @ grid
        sd = (exact @ (grid - mean) ** 2) ** 0.5
        assert abs(learned @ grid - mean) < 0.25 * sd
        assert 0.5 * np.abs(exact - learned).sum() < 0.12  # total variation


def test_emulated_counts_are_whole(counted):
    nle, params, _, test, _ = counted
    keys = jax.random.split(jax.random.key(1), len(test.weight))
    x = jax.jit(jax.vmap(nle.emulate, (None, 0, 0)))(params, keys, test.theta)
    assert not np.array_equal(x["time"], np.round(x["time"]))
    for name in ("few", "many"):
        drawn, true = np.asarray(x[name]), np.asarray(test.x[name])
        assert np.array_equal(drawn, np.round(drawn))
        assert drawn.min() >= 0.0
        spread = true.std() / len(true) ** 0.5
        assert abs(drawn.mean() - true.mean()) < 8 * spread
        assert abs(np.mean(drawn == 0) - np.mean(true == 0)) < 0.04


def test_any_sampler_serves():
    exact = sj.make_nle(PRIOR)  # untrained, on data that are jointly Gaussian
    theta, noise = jax.random.normal(jax.random.key(0), (2, 4_000))
    params = exact.init(jax.random.key(1), sj.make_simulations(theta, theta + noise))
    for sampler in (importance_resampling(), nuts(num_warmup=200)):
        nle = sj.make_nle(PRIOR, sampler=sampler)
        with jax.debug_key_reuse(False):
            theta, info = nle.sample(params, jax.random.key(2), 1.0, num_samples=2_000)
        error = (0.5 / float(info.ess[0])) ** 0.5
        # 1 / sqrt(4,000) for the fitted slope.
        assert abs(float(jnp.mean(theta)) - 0.5) < 5 * error + 0.05


def test_zero_draws_are_refused(mixed):
    nle, params = mixed
    with pytest.raises(ValueError, match="num_samples"):
        nle.sample(
            params, jax.random.key(0), {"choice": 1.0, "time": 0.3}, num_samples=0
        )


def test_an_ensemble_of_unnormalised_posteriors_is_refused():
    for make_estimator in (sj.make_nle, sj.make_nre):
        with pytest.raises(TypeError, match="not normalised in theta"):
            sj.ensemble(make_estimator(PRIOR))


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_of_two_widths_is_learned_from_a_thousand_simulations(seed):
    # Affine layers alone stay at one Gaussian, .9 nats away, for most seeds.
    task = sj.simulators.gaussian_mixture()
    keys = jax.random.split(jax.random.key(seed), 3)
    sims, test = (
        sj.simulate(key, task.prior, task.simulator, size, progress=False)
        for key, size in zip(keys[:2], (1_000, 3_000), strict=True)
    )
    nle = sj.make_nle(task.prior)
    params, _ = sj.train(keys[2], nle, sims, progress=False)
    learned = jax.jit(jax.vmap(nle.log_likelihood, (None, 0, 0)))(
        params, test.theta, test.x
    )
    error = np.asarray(test.x - test.theta)
    densities = [
        scipy.stats.norm.pdf(error, scale=sd).prod(axis=1) for sd in (1.0, 0.1)
    ]
    exact = np.log(0.5 * sum(densities))
    excess = exact - np.asarray(learned)
    assert 0.0 < np.mean(excess) < 0.4
