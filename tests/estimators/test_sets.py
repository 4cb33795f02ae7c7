"""Sets of varying size as data: padding and order have no effect on anything."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import densities, networks

CAPACITY = 8
PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


def simulator(key, theta):
    size_key, noise_key = jax.random.split(key)
    size = jax.random.randint(size_key, (), 1, CAPACITY + 1)
    rows = theta + jax.random.normal(noise_key, (CAPACITY,))
    return sj.Trials(rows, jnp.arange(CAPACITY) < size)


@pytest.fixture(scope="module")
def sims():
    return sj.simulate(jax.random.key(0), PRIOR, simulator, 4_000, progress=False)


def small(make, **options):
    return make(PRIOR, density=densities.mdn(num_components=1), **options)


def with_padding(sims, value):
    """The same sets, with other numbers where nothing is."""
    hidden = np.asarray(sims.x.mask) == 0
    rows = np.where(hidden, value, sims.x.x)
    return sims._replace(x=sims.x._replace(x=jnp.asarray(rows)))


def test_the_default_embedding_of_trials_knows_no_order(sims):
    npe = small(sj.make_npe)
    params = npe.init(jax.random.key(1), sims)
    one = jax.tree.map(lambda leaf: leaf[0], sims.x)
    order = np.random.default_rng(0).permutation(CAPACITY)
    mixed = jax.tree.map(lambda leaf: leaf[order], one)
    values = [sj.infer(npe, params, x).log_prob(0.3) for x in (one, mixed)]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_padding_changes_no_statistic(sims):
    npe = small(sj.make_npe)
    plain, other = (
        npe.init(jax.random.key(1), with_padding(sims, value)) for value in (0.0, 1e6)
    )
    # The example is one of the simulations, padding included.
    for a, b in zip(
        jax.tree.leaves((plain.net, plain.stats._replace(example=None))),
        jax.tree.leaves((other.net, other.stats._replace(example=None))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_nan_in_padding_is_no_failure(sims):
    npe = small(sj.make_npe)
    junk = with_padding(sims, np.nan)
    again = sj.make_simulations(junk.theta, junk.x, sims.weight)
    assert np.all(again.weight == 1.0)
    params = npe.init(jax.random.key(1), again)
    padded = sj.make_trials(np.array([0.4, -0.2]), num_padded=CAPACITY)
    holes = padded._replace(x=padded.x.at[2:].set(jnp.nan))
    values = [sj.infer(npe, params, x).log_prob(0.3) for x in (padded, holes)]
    assert values[0] == values[1]
    with pytest.raises(ValueError, match="non-finite"):
        sj.infer(npe, params, padded._replace(x=padded.x.at[0].set(jnp.nan)))


@pytest.mark.parametrize("wrap", [networks.missing, networks.pooled])
def test_standardizers_of_arrays_refuse_trials(sims, wrap):
    npe = small(sj.make_npe, standardizer=wrap(networks.robust()))
    with pytest.raises(ValueError, match="cannot read Trials"):
        npe.init(jax.random.key(1), sims)
    with pytest.raises(ValueError, match="x holds Trials"):
        sj.with_missing(small(sj.make_npe)).init(jax.random.key(1), sims)


def test_entries_outside_are_counted_where_they_count(sims):
    npe = small(sj.make_npe)
    params = npe.init(jax.random.key(1), sims)
    far = sj.make_trials(jnp.array([0.1, 100.0]), num_padded=CAPACITY)
    _, info = npe.sample(params, jax.random.key(2), far, num_samples=3)
    assert (int(info.num_outside), int(info.num_entries)) == (1, 2)
    hidden = far._replace(mask=jnp.arange(CAPACITY) < 1)
    _, info = npe.sample(params, jax.random.key(3), hidden, num_samples=3)
    assert (int(info.num_outside), int(info.num_entries)) == (0, 1)


@pytest.mark.slow
def test_posterior_of_every_size_is_the_exact_one(sims):
    # theta | n rows ~ N(sum / (n + 1), 1 / (n + 1)).
    npe = small(sj.make_npe)
    params, _ = sj.train(jax.random.key(1), npe, sims, progress=False)
    rng = np.random.default_rng(2)
    for size in (1, 3, 8):
        x = rng.normal(0.5, 1.0, size)
        trials = sj.make_trials(x, num_padded=CAPACITY)
        draws = sj.infer(npe, params, trials).sample(jax.random.key(size), 5_000)
        sd = (size + 1.0) ** -0.5
        assert abs(np.mean(draws) - x.sum() / (size + 1.0)) < 0.3 * sd
        assert abs(np.std(draws) / sd - 1.0) < 0.15


def test_trials_where_they_cannot_be_are_refused(sims):
    with pytest.raises(ValueError, match=r"iid\(nle, prior\)"):
        sj.make_nle(PRIOR).init(jax.random.key(0), sims)
    both = sims._replace(x={"set": sims.x, "number": sims.theta})
    with pytest.raises(ValueError, match=r"networks\.fuse"):
        small(sj.make_npe).init(jax.random.key(0), both)
    fused = networks.fuse({"set": networks.deep_set(4), "number": networks.mlp(2)})
    npe = small(sj.make_npe, embedding=fused)
    assert npe.init(jax.random.key(0), both).net["embedding"].keys() == {
        "number",
        "set",
    }
