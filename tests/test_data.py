"""Records, and the simulations that are made of arrays of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sbijax as sj
from sbijax import densities, networks
from sbijax.checks import check_like, describe
from sbijax.data import fill_zero_weight, make_simulations

# Simulations ------------------------------------------------------------------


def test_simulations_from_arrays_of_any_kind():
    theta = {"a": np.arange(3), "b": jnp.ones((3, 2), jnp.bfloat16)}
    x = (np.ones((3, 1)), np.array([True, False, True]), np.arange(3, dtype=np.uint8))
    sims = make_simulations(theta, x)
    assert isinstance(sims, sj.Simulations)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(sims))
    assert describe(sims.theta) == "{a: float32[3], b: float32[3,2]}"
    assert describe(sims.x) == "(float32[3,1], float32[3], float32[3])"
    assert describe(sims.weight) == "float32[3]"
    assert sims.theta["a"].tolist() == [0.0, 1.0, 2.0]
    assert sims.x[1].tolist() == [1.0, 0.0, 1.0]
    assert sims.weight.tolist() == [1.0, 1.0, 1.0]


def test_a_list_of_rows_is_an_array():
    sims = make_simulations([1, 2], [[1.0, 2.0], [3.0, 4.0]], [1, 0])
    assert describe(sims) == "(float32[2], float32[2,2], float32[2])"
    assert sims.weight.tolist() == [1.0, 0.0]


def test_the_default_floating_dtype_is_used():
    with jax.enable_x64(True):
        sims = make_simulations(np.arange(2), np.zeros((2, 1), np.float32))
        assert describe(sims) == "(float64[2], float64[2,1], float64[2])"


def test_simulations_are_made_again_from_themselves():
    sims = make_simulations(np.zeros(3), np.array([0.0, np.nan, 1.0]), [0.5, 2.0, 0.0])
    again = make_simulations(*sims)
    for a, b in zip(again, sims, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.weight.tolist() == [0.5, 0.0, 0.0]


def test_weights_are_kept():
    weight = np.array([0.0, 0.25, 3.0])
    sims = make_simulations(np.zeros(3), np.zeros(3), weight)
    assert sims.weight.tolist() == weight.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["theta", "series", "number"])
def test_failed_rows_have_weight_zero(where, bad):
    values = {
        "theta": np.zeros((4, 2)),
        "series": np.zeros((4, 3, 2)),
        "number": np.zeros(4),
    }
    values[where].reshape(4, -1)[2, -1] = bad
    theta = values.pop("theta")
    sims = make_simulations(theta, values, [1.0, 2.0, 3.0, 4.0])
    assert sims.weight.tolist() == [1.0, 2.0, 0.0, 4.0]
    leaf = theta if where == "theta" else values[where]
    kept = sims.theta if where == "theta" else sims.x[where]
    np.testing.assert_array_equal(kept, leaf)


def test_values_too_large_for_the_dtype_are_failed_rows():
    sims = make_simulations(np.zeros(3), np.array([1.0, 1e300, -1e300]))
    assert sims.weight.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(3), np.zeros(2)), "got rows theta: 3, x: 2"),
        ((np.zeros(3), np.zeros(3), np.ones(2)), "x: 3, weight: 2"),
        (({"a": np.zeros(3), "b": np.zeros(4)}, np.zeros(3)), r"theta\['b'\]: 4"),
        ((np.zeros(3), (np.zeros(3), np.zeros(1))), r"x\[1\]: 1"),
        ((np.zeros(3), 1.0), "x: None"),
        ((1.0, np.zeros(3)), "theta: None"),
        ((np.zeros(1), np.zeros(1), 1.0), "weight: None"),
        ((np.zeros(0), np.zeros((0, 2))), "no simulations: every array has 0 rows"),
        (({}, np.zeros(3)), "theta holds no arrays"),
        ((np.zeros(3), None), "x holds no arrays"),
        ((np.zeros(3), ()), "x holds no arrays"),
        ((np.zeros(2), np.zeros(2), np.ones((2, 1))), r"shape \(2,\).*float32\[2,1\]"),
        ((np.zeros(2), np.zeros(2), [1.0, -1.0]), "finite and not negative"),
        ((np.zeros(2), np.zeros(2), [1.0, np.nan]), "finite and not negative"),
        ((np.zeros(2), np.zeros(2), [1.0, np.inf]), "finite and not negative"),
    ],
)
def test_mismatched_simulations_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_simulations(*arguments)


@pytest.mark.parametrize(
    "bad",
    [
        np.array(["a", "b"]),
        np.zeros(2, complex),
        np.array([None, 1.0], dtype=object),
        np.array(["2020-01-01"] * 2, dtype="datetime64[D]"),
    ],
)
def test_what_is_not_a_real_number_is_refused(bad):
    with pytest.raises(TypeError, match="^x must hold real numbers, got"):
        make_simulations(np.zeros(2), {"deep": bad})
    with pytest.raises(TypeError, match="^theta must hold real numbers"):
        make_simulations(bad, np.zeros(2))


def test_make_simulations_under_transformations():
    x = jnp.array([[1.0, jnp.nan], [2.0, 3.0]])
    plain = make_simulations(x, x)
    compiled = jax.jit(make_simulations)(x, x, jnp.ones(2))
    np.testing.assert_array_equal(compiled.weight, plain.weight)
    mapped = jax.vmap(make_simulations)(x, x)
    assert mapped.weight.tolist() == [[1.0, 0.0], [1.0, 1.0]]


# Rows of weight 0 -------------------------------------------------------------

EXAMPLE = sj.Simulations({"a": jnp.array([7.0, 8.0])}, jnp.array(9.0), jnp.array(1.0))


def batch_with_failures():
    theta = {"a": jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, jnp.inf], [4.0, 5.0]])}
    x = jnp.array([4.0, -1.0, jnp.nan, 9.0])
    return sj.Simulations(theta, x, jnp.array([2.0, 0.0, 0.0, 0.5]))


def test_rows_of_weight_zero_become_the_example():
    batch = batch_with_failures()
    filled = fill_zero_weight(batch, EXAMPLE)
    assert filled.theta["a"].tolist() == [[1.0, 2.0], [7.0, 8.0], [7.0, 8.0], [4, 5]]
    assert filled.x.tolist() == [4.0, 9.0, 9.0, 9.0]
    assert filled.weight.tolist() == batch.weight.tolist()


def test_gradients_do_not_see_rows_of_weight_zero():
    batch = batch_with_failures()

    def loss(scale, theta, x, fill):
        rows = batch._replace(theta=theta, x=x)
        theta, x, weight = fill_zero_weight(rows, EXAMPLE) if fill else rows
        each = jnp.log(scale * x) + jnp.sum(scale * theta["a"] ** 2, axis=1)
        return jnp.sum(weight * each)

    grad = jax.grad(loss, argnums=(0, 1, 2))
    to_scale, to_theta, to_x = grad(jnp.array(1.0), batch.theta, batch.x, True)
    # d/ds sum w (log(s x) + s |theta|^2) over the rows of weight 2 and 0.5
    assert to_scale == 2.0 * (1.0 + 5.0) + 0.5 * (1.0 + 41.0)
    assert to_theta["a"].tolist() == [[4.0, 8.0], [0.0, 0.0], [0.0, 0.0], [4.0, 5.0]]
    np.testing.assert_allclose(to_x, [2.0 / 4.0, 0.0, 0.0, 0.5 / 9.0])
    without, _, _ = grad(jnp.array(1.0), batch.theta, batch.x, False)
    assert not np.isfinite(without)


# Any structure ----------------------------------------------------------------

NAMES = st.sampled_from(["a", "b c", "é", "0"])
SHAPES = st.lists(st.integers(1, 3), max_size=2).map(lambda s: np.zeros(s))


def nestings(leaves):
    """Dicts, tuples and lists of leaves, two deep at most."""
    layer = leaves
    for _ in range(2):
        layer = st.one_of(
            leaves,
            st.dictionaries(NAMES, layer, min_size=1, max_size=2),
            st.lists(layer, min_size=1, max_size=2).map(tuple),
            st.lists(layer, min_size=1, max_size=2).map(lambda v: {"list": v}),
        )
    return layer


STRUCTURES = nestings(SHAPES)


def rows_of(example, num_rows):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=(num_rows, *leaf.shape)), example)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(STRUCTURES, STRUCTURES, st.integers(1, 3))
def test_every_structure_is_kept_and_every_other_refused(theta, x, num_rows):
    theta, x = rows_of(theta, num_rows), rows_of(x, num_rows)
    sims = make_simulations(theta, x)
    assert jax.tree.structure(sims.theta) == jax.tree.structure(theta)
    assert jax.tree.structure(sims.x) == jax.tree.structure(x)
    assert sims.weight.shape == (num_rows,)
    for kept, given_ in zip(
        jax.tree.leaves((sims.theta, sims.x)), jax.tree.leaves((theta, x)), strict=True
    ):
        assert kept.dtype == jnp.float32
        np.testing.assert_array_equal(kept, given_.astype(np.float32))

    example = jax.tree.map(lambda leaf: np.asarray(leaf)[0], sims.x)
    row = jax.tree.map(lambda leaf: leaf[0], x)
    found = check_like(row, example, "x")
    assert jax.tree.structure(found) == jax.tree.structure(x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(example), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="looks like a batch"):
        check_like(x, example, "x")
    with pytest.raises(ValueError, match="another structure"):
        check_like({"other": row}, example, "x")
    leaves, structure = jax.tree.flatten(row)
    leaves[-1] = np.zeros((*leaves[-1].shape, 2))
    with pytest.raises(ValueError, match="another shape"):
        check_like(jax.tree.unflatten(structure, leaves), example, "x")


PRIOR_SHAPES = st.dictionaries(
    NAMES, st.lists(st.integers(1, 2), max_size=2).map(tuple), min_size=1, max_size=2
)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(PRIOR_SHAPES, STRUCTURES, st.integers(1, 5))
def test_draws_have_the_structure_of_the_simulations(shapes, x, num_rows):
    prior = sj.make_prior(
        {name: dist.Normal(jnp.zeros(shape), 1.0) for name, shape in shapes.items()}
    )

    def small(num_outputs):
        return networks.mlp(num_outputs, hidden_sizes=(4,))

    npe = sj.make_npe(
        prior,
        density=densities.mdn(num_components=1, network=small),
        embedding=small(2),
    )
    theta = rows_of({name: np.zeros(shape) for name, shape in shapes.items()}, num_rows)
    sims = make_simulations(theta, rows_of(x, num_rows))
    params = jax.jit(npe.init)(jax.random.key(0), sims)
    x_observed = jax.tree.map(lambda leaf: leaf[0], sims.x)
    draws = sj.infer(npe, params, x_observed).sample(jax.random.key(1), 3)
    assert {name: leaf.shape for name, leaf in draws.items()} == {
        name: (3, *shape) for name, shape in shapes.items()
    }
    for leaf in jax.tree.leaves(draws):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
