"""From parameters and one observation to draws and densities."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import densities, networks
from sbijax.base import ChainInfo, SampleInfo

NUM_ROWS = 100


def small(num_outputs):
    return networks.mlp(num_outputs, hidden_sizes=(8,))


PRIOR = sj.make_prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(0.0, 2.0)})
NPE = sj.make_npe(
    PRIOR,
    density=densities.mdn(num_components=2, network=small),
    embedding=small(4),
)


def make_params():
    rng = np.random.default_rng(0)
    theta = {"a": rng.normal(size=NUM_ROWS), "b": rng.uniform(0.0, 2.0, NUM_ROWS)}
    x = {
        "series": theta["a"][:, None] + 0.1 * rng.normal(size=(NUM_ROWS, 3)),
        "number": theta["b"],
    }
    sims = sj.make_simulations(theta, x)
    return jax.jit(NPE.init)(jax.random.key(0), sims), sims


@pytest.fixture(scope="module")
def trained():
    return make_params()


def observe(sims, i=0):
    return jax.tree.map(lambda leaf: np.asarray(leaf[i]), sims.x)


def assert_close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def count_traces():
    """An estimator that counts how often its functions are traced."""
    calls = {"sample": 0, "log_prob": 0}

    def sample(params, key, x, *, num_samples):
        calls["sample"] += 1
        zero = jnp.zeros((), int)
        noise = jax.random.normal(key, (num_samples,))
        return params.net + x + noise, SampleInfo(zero, zero, zero)

    def log_prob(params, theta, x):
        calls["log_prob"] += 1
        return -((theta - x - params.net) ** 2)

    one = jnp.zeros(())
    stats = sj.Stats(sj.Simulations(one, one, one), {}, {})
    return sj.Estimator(None, None, log_prob, sample), sj.Params(one, stats), calls


# Draws and densities ----------------------------------------------------------


def test_a_posterior_is_what_the_estimator_says(trained):
    params, sims = trained
    x = observe(sims)
    posterior = sj.infer(NPE, params, x)
    draws = posterior.sample(jax.random.key(1), 5)
    sample = jax.jit(NPE.sample, static_argnames="num_samples")
    expected, _ = sample(params, jax.random.key(1), x, num_samples=5)
    assert_close(draws, expected)
    theta = jax.tree.map(lambda leaf: leaf[0], draws)
    assert_close(posterior.log_prob(theta), jax.jit(NPE.log_prob)(params, theta, x))


def test_vmap_over_observations_equals_a_loop(trained):
    params, sims = trained
    keys = jax.random.split(jax.random.key(2), 4)
    few = jax.tree.map(lambda leaf: leaf[:4], sims)

    def draw(key, x):
        return sj.infer(NPE, params, x).sample(key, 7)

    def score(theta, x):
        return sj.infer(NPE, params, x).log_prob(theta)

    mapped = jax.vmap(draw)(keys, few.x)
    compiled = jax.jit(jax.vmap(draw))(jax.random.clone(keys), few.x)
    assert_close(mapped, compiled)
    scores = jax.vmap(score)(few.theta, few.x)
    for i, key in enumerate(jax.random.clone(keys)):
        one = draw(key, observe(sims, i))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), one)
        theta = jax.tree.map(lambda leaf, i=i: leaf[i], few.theta)
        assert_close(scores[i], score(theta, observe(sims, i)))
    assert len(np.unique(np.round(mapped["a"], 6))) == 28


def test_vmap_over_parameters(trained):
    params, sims = trained
    other = jax.tree.map(lambda leaf: leaf + 0.1, params.net)
    nets = jax.tree.map(lambda a, b: jnp.stack([a, b]), params.net, other)
    theta, x = {"a": 0.1, "b": 1.0}, observe(sims)

    def score(net):
        return sj.infer(NPE, params._replace(net=net), x).log_prob(theta)

    scores = jax.vmap(score)(nets)
    assert_close(scores, jnp.stack([score(params.net), score(other)]))
    assert scores[0] != scores[1]


def test_log_prob_under_vmap_and_grad(trained):
    params, sims = trained
    log_prob = sj.infer(NPE, params, observe(sims)).log_prob
    grid = {"a": jnp.linspace(-1.0, 1.0, 5), "b": jnp.linspace(-0.5, 1.5, 5)}
    scores = jax.vmap(log_prob)(grid)
    for i in range(5):
        theta = jax.tree.map(lambda leaf, i=i: leaf[i], grid)
        assert_close(scores[i], log_prob(theta))
    assert scores[0] == -jnp.inf  # b is outside the prior there
    assert np.all(np.isfinite(scores[1:]))

    theta, step = {"a": 0.2, "b": 0.9}, 1e-2
    grad = jax.grad(log_prob)(theta)
    for name in theta:
        up = log_prob(theta | {name: theta[name] + step})
        down = log_prob(theta | {name: theta[name] - step})
        # Central differences: rounding 1e-6 / step and a term in step squared.
        np.testing.assert_allclose(
            grad[name], (up - down) / (2 * step), rtol=0.02, atol=2e-3
        )


def test_no_density_no_log_prob(trained):
    params, sims = trained
    posterior = sj.infer(NPE._replace(log_prob=None), params, observe(sims))
    assert posterior.log_prob is None
    assert posterior.sample(jax.random.key(0), 2)["a"].shape == (2,)


def test_host_arrays_serve_as_parameters(trained):
    params, sims = trained
    on_host = jax.device_get(params)
    x = observe(sims)
    assert_close(
        sj.infer(NPE, on_host, x).sample(jax.random.key(1), 3),
        sj.infer(NPE, params, x).sample(jax.random.key(1), 3),
    )


# Compilation ------------------------------------------------------------------


def test_compiled_once_across_observations_and_posteriors():
    estimator, params, calls = count_traces()
    for i, x in enumerate([0.0, 1, np.float64(2.0), jnp.array(3.0), True]):
        posterior = sj.infer(estimator, params, x)
        for seed in (0, 1):
            posterior.sample(jax.random.key(seed), 3)
        found = posterior.log_prob(jnp.array(1.0))
        assert found == -((1.0 - float(x)) ** 2)
        assert calls == {"sample": 1, "log_prob": 1}, i
    sj.infer(estimator, params._replace(net=params.net + 1), 0.0).sample(
        jax.random.key(2), np.int64(3)
    )
    assert calls["sample"] == 1
    posterior.sample(jax.random.key(3), 4)
    assert calls["sample"] == 2


# The observation --------------------------------------------------------------


def test_observations_are_converted(trained):
    params, sims = trained
    x = observe(sims)
    expected = sj.infer(NPE, params, x).sample(jax.random.key(0), 3)
    for other in (
        jax.tree.map(jnp.asarray, x),
        jax.tree.map(lambda leaf: leaf.astype(np.float64), x),
        x | {"number": float(x["number"])},
    ):
        found = sj.infer(NPE, params, other).sample(jax.random.key(0), 3)
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {"number": x["number"]}, "another structure"),
        (lambda x: x | {"more": 1.0}, "another structure"),
        (lambda x: (x["number"], x["series"]), "another structure"),
        (lambda x: x["series"], "another structure"),
        (lambda x: None, "another structure"),
        (lambda x: x | {"number": np.zeros(1)}, "another shape"),
        (lambda x: x | {"series": np.zeros(4)}, "another shape"),
        (lambda x: x | {"series": np.zeros((3, 1))}, "another shape"),
    ],
)
def test_other_observations_are_refused(trained, change, words):
    params, sims = trained
    with pytest.raises(ValueError, match=f"^x has {words}") as error:
        sj.infer(NPE, params, change(observe(sims)))
    assert "series: float32[3]" in str(error.value)
    assert "batch" not in str(error.value)


def test_batches_of_observations_are_refused_with_a_hint(trained):
    params, sims = trained
    with pytest.raises(ValueError, match=r"looks like a batch: jax\.vmap"):
        sj.infer(NPE, params, sims.x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_missing_values_are_refused(trained, bad):
    params, sims = trained
    x = observe(sims)
    x["series"] = np.array([0.0, bad, 0.0])
    with pytest.raises(ValueError, match=r"^x\['series'\] holds 1 non-finite .* of 3"):
        sj.infer(NPE, params, x)


def test_theta_of_another_shape_is_refused(trained):
    params, sims = trained
    log_prob = sj.infer(NPE, params, observe(sims)).log_prob
    with pytest.raises(ValueError, match="^theta has another structure"):
        log_prob({"a": 0.0})
    with pytest.raises(ValueError, match=r"looks like a batch: jax\.vmap"):
        log_prob({"a": np.zeros(4), "b": np.ones(4)})


def test_an_observation_outside_the_simulations_is_said(trained):
    params, sims = trained
    key = jax.random.key(3)
    for values, count in (([9.0, 0.0, 0.0], 1), ([-9.0, 0.0, 9.0], 2)):
        posterior = sj.infer(NPE, params, observe(sims) | {"series": np.array(values)})
        words = f"outside the simulations in {count} of 4 entries"
        with pytest.warns(sj.SbijaxWarning, match=words) as record:
            posterior.sample(jax.random.clone(key), 2)
        assert len(record) == 1
        assert record[0].filename == __file__


def test_an_observation_inside_the_simulations_is_not(trained):
    params, sims = trained
    extremes = [
        {"series": np.asarray(pick(sims.x["series"], axis=0)), "number": 1.0}
        for pick in (np.min, np.max)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in [observe(sims), *extremes]:
            sj.infer(NPE, params, x).sample(jax.random.key(0), 2)


def test_draws_that_are_not_finite_are_said(trained):
    params, sims = trained
    broken = params._replace(net=jax.tree.map(lambda p: p * jnp.nan, params.net))
    posterior = sj.infer(NPE, broken, observe(sims))
    with pytest.warns(sj.SbijaxWarning, match="^6 draws are not finite"):
        posterior.sample(jax.random.key(0), 6)


# Keys, counts, parameters -----------------------------------------------------


@pytest.mark.parametrize("key", [0, None, np.zeros(2, np.uint32)])
def test_raw_keys_are_refused(trained, key):
    params, sims = trained
    with pytest.raises(TypeError, match="^key must be a typed PRNG key"):
        sj.infer(NPE, params, observe(sims)).sample(key, 3)


def test_batches_of_keys_are_refused(trained):
    params, sims = trained
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(TypeError, match=r"one PRNG key, got a batch of shape \(2,\)"):
        sj.infer(NPE, params, observe(sims)).sample(keys, 3)


def test_a_key_is_consumed(trained):
    params, sims = trained
    posterior, key = sj.infer(NPE, params, observe(sims)), jax.random.key(0)
    posterior.sample(key, 2)
    with pytest.raises(jax.errors.KeyReuseError):
        posterior.sample(key, 2)


@pytest.mark.parametrize(
    ("num_samples", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        (True, TypeError),
        ("2", TypeError),
        (None, TypeError),
        ((2, 3), TypeError),
    ],
)
def test_absurd_numbers_of_samples_are_refused(trained, num_samples, error):
    params, sims = trained
    posterior = sj.infer(NPE, params, observe(sims))
    with pytest.raises(error, match="^num_samples must be"):
        posterior.sample(jax.random.key(0), num_samples)


@pytest.mark.parametrize(
    "change",
    [
        lambda params: (params, None),  # all that train returns
        lambda params: params.net,
        lambda params: tuple(params),
        lambda params: NPE,
        lambda params: None,
    ],
)
def test_parameters_of_another_type_are_refused(trained, change):
    params, sims = trained
    with pytest.raises(TypeError, match="^params must be of type Params"):
        sj.infer(NPE, change(params), observe(sims))


# Chains -----------------------------------------------------------


def chain_info(**faults):
    zero = jnp.zeros((), int)
    healthy = ChainInfo(
        num_invalid=zero,
        num_outside=zero,
        num_entries=zero,
        rhat=jnp.array([1.0, 1.01]),
        ess=jnp.array([500.0, 600.0]),
        acceptance=jnp.full(4, 0.8),
        num_divergent=zero,
        num_failed=zero,
        log_evidence=jnp.array(jnp.nan),
        pareto_k=jnp.array(jnp.nan),
    )
    return healthy._replace(**{k: jnp.asarray(v) for k, v in faults.items()})


def draw_with(info):
    def sample(params, key, x, *, num_samples):
        return jax.random.normal(key, (num_samples,)), info

    estimator = sj.Estimator(init=None, loss=None, log_prob=None, sample=sample)
    example = sj.Simulations(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))
    params = sj.Params({}, sj.Stats(example, {}, {}))
    return sj.infer(estimator, params, 0.0).sample(jax.random.key(0), 3)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"rhat": [1.0, 1.3]}, "R-hat is 1.30, above 1.05"),
        ({"num_failed": 1}, "1 of 4 chains failed.*Copies of the others"),
        ({"num_failed": 4}, "4 of 4 chains failed.*not from the posterior"),
        ({"num_divergent": 7}, "7 transitions diverged"),
        ({"pareto_k": 0.9}, "Pareto k is 0.90, above 0.7"),
        ({"num_invalid": 2}, "2 draws are not finite"),
    ],
)
def test_faults_of_chains_are_said(faults, words):
    with pytest.warns(sj.SbijaxWarning, match=words):
        draw_with(chain_info(**faults))


def test_healthy_chains_say_nothing():
    assert draw_with(chain_info()).shape == (3,)
    # NaN: the sampler cannot tell.
    assert draw_with(chain_info(rhat=[jnp.nan, jnp.nan])).shape == (3,)
