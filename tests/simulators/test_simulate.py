"""Tests of drawing simulations: chunks, failures, errors, programs shared."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sbijax.base import SbijaxWarning
from sbijax.priors import make_prior
from sbijax.simulators import simulate, simulate_batch

module = importlib.import_module("sbijax.simulators._sink")

PRIOR = make_prior({"loc": dist.Normal(0.0, 1.0), "scale": dist.Uniform(0.5, 2.0)})


def simulator(key, theta):
    return theta["loc"] + theta["scale"] * jax.random.normal(key, (3,))


def fails_below_zero(key, theta):
    x = simulator(key, theta)
    return jnp.where(theta["loc"] < 0.0, jnp.nan, x)


def assert_trees_equal(first, second):
    """Equal but for the last bits: XLA rounds as the length of a chunk suits it."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        first,
        second,
    )


def test_shapes_and_dtypes():
    sims = simulate(jax.random.key(0), PRIOR, simulator, 10, progress=False)
    assert sims.theta["loc"].shape == sims.theta["scale"].shape == (10,)
    assert sims.x.shape == (10, 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sims))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(sims))
    np.testing.assert_array_equal(sims.weight, np.ones(10))


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 99, 100, 1000])
def test_draws_do_not_depend_on_chunk_size(chunk_size):
    reference = simulate(jax.random.key(0), PRIOR, simulator, 100)
    chunked = simulate(jax.random.key(0), PRIOR, simulator, 100, chunk_size=chunk_size)
    assert_trees_equal(chunked, reference)


def test_longer_run_starts_with_the_same_draws():
    short = simulate(jax.random.key(0), PRIOR, simulator, 30)
    long = simulate(jax.random.key(0), PRIOR, simulator, 50)
    assert_trees_equal(short, jax.tree.map(lambda leaf: leaf[:30], long))


def test_another_key_gives_other_draws():
    first = simulate(jax.random.key(0), PRIOR, simulator, 20)
    second = simulate(jax.random.key(1), PRIOR, simulator, 20)
    for a, b in zip(
        jax.tree.leaves(first[:2]), jax.tree.leaves(second[:2]), strict=True
    ):
        assert not np.any(np.asarray(a) == np.asarray(b))


def test_prior_and_simulator_do_not_share_random_numbers():
    # The same numbers would give x = theta exactly for these two.
    prior = make_prior(dist.Normal(0.0, 1.0))
    size = 4000
    sims = simulate(
        jax.random.key(0), prior, lambda key, theta: jax.random.normal(key), size
    )
    theta, x = np.asarray(sims.theta), np.asarray(sims.x)
    for values in (theta, x, theta[1:] * theta[:-1], x[1:] * x[:-1], theta * x):
        assert abs(values.mean()) < 4.5 * values.std() / np.sqrt(size)
    np.testing.assert_allclose(
        [theta.std(), x.std()], 1.0, atol=4.5 / np.sqrt(2 * size)
    )


def test_batch_gives_the_same_draws():
    reference = simulate(jax.random.key(0), PRIOR, simulator, 100)
    eager = simulate_batch(jax.random.key(0), PRIOR, simulator, 100)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), eager, reference)
    compiled = jax.jit(lambda key: simulate_batch(key, PRIOR, simulator, 100))
    assert_trees_equal(compiled(jax.random.key(0)), reference)


def test_batch_under_jit_and_vmap():
    def draw(key):
        return simulate_batch(key, PRIOR, fails_below_zero, 20)

    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(draw))(keys)
    single = jax.jit(draw)
    for i in range(3):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        assert_trees_equal(row, single(keys[i]))
    assert 0 < np.sum(batched.weight == 0.0) < 60


def test_failed_draws_have_weight_zero_and_are_reported():
    with pytest.warns(
        SbijaxWarning, match=r"of 200 simulations \(.* %\) failed"
    ) as log:
        sims = simulate(jax.random.key(0), PRIOR, fails_below_zero, 200, chunk_size=64)
    failed = np.asarray(sims.theta["loc"]) < 0.0
    np.testing.assert_array_equal(sims.weight, np.where(failed, 0.0, 1.0))
    (warning,) = log
    assert str(warning.message).startswith(f"{failed.sum()} of 200")
    assert warning.filename == __file__


def test_one_bad_entry_of_one_leaf_fails_the_draw():
    def two_leaves(key, theta):
        x = simulator(key, theta)
        first = jnp.where(theta["loc"] > 1.0, -jnp.inf, x[0])
        return {"good": x, "bad": x.at[0].set(first)}

    with pytest.warns(SbijaxWarning, match="failed"):
        sims = simulate(jax.random.key(0), PRIOR, two_leaves, 100)
    np.testing.assert_array_equal(sims.weight == 0.0, sims.theta["loc"] > 1.0)


def test_all_failed_is_an_error():
    with pytest.raises(ValueError, match="all 10 simulations failed"):
        simulate(
            jax.random.key(0), PRIOR, lambda key, theta: jnp.nan * theta["loc"], 10
        )


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_second_call_does_not_retrace(chunk_size):
    num_traces = 0

    def counting(key, theta):
        nonlocal num_traces
        num_traces += 1
        return simulator(key, theta)

    def run(key, size):
        simulate(key, PRIOR, counting, size, chunk_size=chunk_size, progress=False)

    run(jax.random.key(0), 50)
    before = num_traces
    assert before > 0
    run(jax.random.key(1), 50)
    assert num_traces == before
    if chunk_size is not None:
        run(jax.random.key(0), 41)
        assert num_traces == before


def test_pytree_x_with_integers_booleans_and_numbers():
    def tree(key, theta):
        x = simulator(key, theta)
        counts = jnp.round(10.0 * x).astype(jnp.int32)
        return {"counts": counts, "pair": (x[0] > 0.0, theta["loc"]), "constant": 1}

    sims = simulate(jax.random.key(0), PRIOR, tree, 12, chunk_size=5)
    assert sims.x["counts"].shape == (12, 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sims.x))
    np.testing.assert_array_equal(sims.x["pair"][1], sims.theta["loc"])
    np.testing.assert_array_equal(sims.x["constant"], np.ones(12))
    np.testing.assert_array_equal(sims.x["counts"], np.round(sims.x["counts"]))


def test_memory_bound_sets_the_chunk_size(monkeypatch):
    sizes = []
    write = module.MemorySink.write

    def spy(sink, rows):
        sizes.append(len(rows.sims.weight))
        write(sink, rows)

    monkeypatch.setattr(module.MemorySink, "write", spy)
    # One row is theta (2 floats), x (3 floats) and the weight: 24 bytes.
    monkeypatch.setattr(module, "_CHUNK_BYTES", 24 * 40)
    simulate(jax.random.key(0), PRIOR, simulator, 100)
    assert sizes == [40, 40, 40]


@pytest.fixture
def interrupt_at(monkeypatch):
    """Make the n-th chunk raise what Ctrl-C raises."""

    def install(number):
        write = module.MemorySink.write
        calls = []

        def interrupted(sink, rows):
            calls.append(rows.start)
            if len(calls) == number:
                raise KeyboardInterrupt
            write(sink, rows)

        monkeypatch.setattr(module.MemorySink, "write", interrupted)

    return install


def test_interrupt_returns_the_finished_draws(interrupt_at):
    reference = simulate(jax.random.key(0), PRIOR, simulator, 100)
    interrupt_at(3)
    with pytest.warns(SbijaxWarning, match="the 40 of 100 simulations"):
        sims = simulate(jax.random.key(0), PRIOR, simulator, 100, chunk_size=20)
    assert_trees_equal(sims, jax.tree.map(lambda leaf: leaf[:40], reference))


def test_interrupt_before_the_first_chunk_is_raised(interrupt_at):
    interrupt_at(1)
    with pytest.raises(KeyboardInterrupt):
        simulate(jax.random.key(0), PRIOR, simulator, 100, chunk_size=20)


def test_quick_run_prints_nothing(capfd):
    simulate(jax.random.key(0), PRIOR, simulator, 10)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr_and_counts_failures(capfd, monkeypatch):
    monkeypatch.setattr(module, "_PROGRESS_DELAY", 0.0)
    with pytest.warns(SbijaxWarning, match="failed"):
        sims = simulate(jax.random.key(0), PRIOR, fails_below_zero, 50, chunk_size=10)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"failed={int(np.sum(sims.weight == 0.0))}" in err
    with pytest.warns(SbijaxWarning, match="failed"):
        simulate(
            jax.random.key(0),
            PRIOR,
            fails_below_zero,
            50,
            chunk_size=10,
            progress=False,
        )
    assert capfd.readouterr() == ("", "")


class Unhashable:
    __hash__ = None

    def __call__(self, key, theta):
        return simulator(key, theta)


def branches(key, theta):
    return theta["loc"] if theta["loc"] > 0 else -theta["loc"]


def shape_depends_on_theta(key, theta):
    return jnp.zeros(jnp.round(theta["scale"]).astype(int))


def drops_rows(key, theta):
    x = simulator(key, theta)
    return x[x > 0.0]


def uses_numpy(key, theta):
    return np.sin(theta["loc"])


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (
            lambda theta: theta["loc"],
            r"simulator has the signature \(theta\), expected",
        ),
        (lambda key, theta, extra: theta["loc"], "expected simulator"),
        (3, "must be a function, got int"),
        (Unhashable(), "Unhashable is not hashable"),
        (branches, "cannot be compiled by JAX"),
        (shape_depends_on_theta, "concrete values"),
        (drops_rows, "cannot be compiled by JAX"),
        (uses_numpy, "cannot be compiled by JAX"),
        (lambda key, theta: None, "must return an array of real numbers"),
        (lambda key, theta: {"x": "text"}, "must return an array of real numbers"),
        (lambda key, theta: key, "must return an array of real numbers"),
        (lambda key, theta: 1j * theta["loc"], "must return an array of real numbers"),
    ],
)
@pytest.mark.parametrize("draw", [simulate, simulate_batch])
def test_bad_simulator(draw, bad, match):
    with pytest.raises(TypeError, match=match):
        draw(jax.random.key(0), PRIOR, bad, 10)


def test_original_exception_is_chained():
    with pytest.raises(TypeError) as caught:
        simulate(jax.random.key(0), PRIOR, branches, 10)
    assert isinstance(caught.value.__cause__, jax.errors.TracerBoolConversionError)


def test_fault_inside_the_simulator_says_what_theta_is():
    with pytest.raises(KeyError) as caught:
        simulate(jax.random.key(0), PRIOR, lambda key, theta: theta["rate"], 10)
    notes = " ".join(caught.value.__notes__)
    assert "Raised in the simulator" in notes
    assert "theta = {loc: float32[], scale: float32[]}" in notes


@pytest.mark.parametrize("draw", [simulate, simulate_batch])
@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-3, ValueError), (1e3, TypeError), (True, TypeError)],
)
def test_bad_count(draw, count, error):
    with pytest.raises(error, match="num_simulations must be"):
        draw(jax.random.key(0), PRIOR, simulator, count)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.5, TypeError)])
def test_bad_chunk_size(size, error):
    with pytest.raises(error, match="chunk_size must be"):
        simulate(jax.random.key(0), PRIOR, simulator, 10, chunk_size=size)


def test_numpy_count_is_accepted():
    assert simulate(jax.random.key(0), PRIOR, simulator, np.int64(4)).weight.shape == (
        4,
    )


def test_a_list_of_numbers_is_a_vector():
    def listing(key, theta):
        return [jax.random.normal(key), 2.0]

    sims = simulate(jax.random.key(0), PRIOR, listing, 5, progress=False)
    assert sims.x.shape == (5, 2)
    assert np.all(sims.x[:, 1] == 2.0)
    assert len(np.unique(sims.x[:, 0])) == 5


@pytest.mark.parametrize(
    "x", [[jnp.zeros(2), jnp.zeros(3)], [{"a": jnp.zeros(2)}, {"a": jnp.zeros(2)}]]
)
def test_a_list_that_is_no_array_is_refused(x):
    with pytest.raises(TypeError, match="^simulator returned a list that is not one"):
        simulate(jax.random.key(0), PRIOR, lambda key, theta: x, 5, progress=False)


@pytest.mark.parametrize("draw", [simulate, simulate_batch])
def test_bad_key_and_prior(draw):
    with pytest.raises(TypeError, match="key must be a typed PRNG key"):
        draw(0, PRIOR, simulator, 10)
    with pytest.raises(TypeError, match="must be one PRNG key, got a batch"):
        draw(jax.random.split(jax.random.key(0)), PRIOR, simulator, 10)
    with pytest.raises(TypeError, match="prior must be of type Prior, got Normal"):
        draw(jax.random.key(0), dist.Normal(0.0, 1.0), simulator, 10)


def test_simulate_inside_jit_points_to_the_pure_form():
    with pytest.raises(TypeError, match="use simulate_batch"):
        jax.jit(lambda key: simulate(key, PRIOR, simulator, 10).x)(jax.random.key(0))


def test_double_precision_follows_the_context():
    single = simulate(jax.random.key(0), PRIOR, simulator, 10)
    with jax.enable_x64(True):
        double = simulate(jax.random.key(0), PRIOR, simulator, 10)
    assert single.x.dtype == jnp.float32
    assert double.x.dtype == jnp.float64
