"""Records and the functions that check what goes into them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sbijax as sj
from sbijax import densities, networks
from sbijax.base import (
    check_count,
    check_finite,
    check_key,
    check_like,
    describe,
    fill_zero_weight,
    make_simulations,
)

# Counts and keys --------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 7, np.int64(7), np.uint8(1), np.array(3)])
def test_whole_numbers_are_counts(value):
    count = check_count(value, "num_rows")
    assert type(count) is int
    assert count == value


@pytest.mark.parametrize(
    "value", [1.0, "1", None, True, np.True_, np.float32(2), [1], np.array([1, 2])]
)
def test_other_things_are_no_counts(value):
    with pytest.raises(TypeError, match="^num_rows must be an integer, got"):
        check_count(value, "num_rows")


def test_counts_have_a_lower_bound():
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"^num_rows must be .* 1, got {value}"):
            check_count(value, "num_rows")
    assert check_count(0, "num_rows", least=0) == 0
    with pytest.raises(ValueError, match="at least 5, got 4"):
        check_count(4, "num_rows", least=5)


def test_typed_keys_pass():
    check_key(jax.random.key(0))
    check_key(jax.random.key(0, impl="rbg"))
    jax.jit(check_key)(jax.random.key(0))
    jax.vmap(check_key)(jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize(
    "value", [0, None, "key", np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32), [1, 2]]
)
def test_other_things_are_no_keys(value):
    with pytest.raises(TypeError, match="^my_key must be a typed PRNG key, got .*key"):
        check_key(value, "my_key")


def test_legacy_keys_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"uint32\[2\].*wrap_key_data"):
        check_key(jax.random.PRNGKey(0))


def test_batches_of_keys_are_refused():
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(TypeError, match=r"^key must be one.*\(3,\).*vmap"):
        check_key(keys)
    with pytest.raises(TypeError, match=r"shape \(1,\)"):
        check_key(keys[:1])


# Words for pytrees ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (jnp.zeros(3), "float32[3]"),
        (np.zeros((2, 0)), "float64[2,0]"),
        (jnp.zeros((), jnp.bfloat16), "bfloat16[]"),
        (True, "bool[]"),
        ({"b": jnp.zeros(1), "a": {}}, "{b: float32[1], a: {}}"),
        ((np.zeros(1, np.int8), [jnp.ones(2)]), "(int8[1], (float32[2]))"),
        (jax.ShapeDtypeStruct((4,), jnp.float32), "float32[4]"),
        (jax.random.key(0), "key<fry>[]"),
        (None, "object[]"),
    ],
)
def test_describe(tree, words):
    assert describe(tree) == words


# One theta or x against the simulations ---------------------------------------


@pytest.mark.parametrize(
    "value", [2, 2.0, True, np.float64(2.0), np.array(2), jnp.array(2, jnp.bfloat16)]
)
def test_numbers_are_converted(value):
    found = check_like(value, jnp.zeros(()), "x")
    assert isinstance(found, jax.Array)
    assert found.dtype == jnp.float32
    assert found == value


def test_structures_are_kept():
    example = {"a": jnp.zeros(2), "b": (jnp.zeros((), jnp.int32), [jnp.zeros(1)])}
    value = {"b": (3, [np.ones(1)]), "a": np.array([1.0, 2.0])}
    found = check_like(value, example, "x")
    assert jax.tree.structure(found) == jax.tree.structure(example)
    assert describe(found) == describe(example)
    assert found["a"].tolist() == [1.0, 2.0]
    assert found["b"][0] == 3


def test_a_list_of_numbers_is_an_array():
    found = check_like([[1, 2], [3, 4]], jnp.zeros((2, 2)), "x")
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    kept = check_like([1.0, 2.0], [jnp.zeros(()), jnp.zeros(())], "x")
    assert isinstance(kept, list)


@pytest.mark.parametrize(
    "value", [None, {"a": 0.0}, (0.0,), {"b": 0.0, "c": 0.0}, jnp.zeros(2)]
)
def test_other_structures_are_refused(value):
    example = {"b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="^theta has another structure") as error:
        check_like(value, example, "theta")
    assert describe(value) in str(error.value)
    assert "expected {b: float32[2]} as in the simulations" in str(error.value)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (2, 2, 2), (1, 1, 2, 1), (0,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="^x has another shape") as error:
        check_like(np.zeros(shape), jnp.zeros((2, 1)), "x")
    words = ",".join(map(str, shape))
    assert f"got float64[{words}], expected float32[2,1]" in str(error.value)
    assert "batch" not in str(error.value)


def test_batches_are_refused_with_a_hint():
    example = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), example)
    with pytest.raises(ValueError, match=r"looks like a batch: jax\.vmap"):
        check_like(batch, example, "x")
    half = batch | {"b": jnp.zeros(())}
    with pytest.raises(ValueError, match="another shape") as error:
        check_like(half, example, "x")
    assert "batch" not in str(error.value)


def test_check_like_under_transformations():
    example = jnp.zeros(2)
    batch = jnp.arange(6.0).reshape(3, 2)
    found = jax.vmap(lambda x: check_like(x, example, "x"))(batch)
    assert found.tolist() == batch.tolist()
    grad = jax.grad(lambda x: jnp.sum(check_like(x, example, "x") ** 2))(batch[1])
    assert grad.tolist() == [4.0, 6.0]


def test_non_finite_values_are_located():
    check_finite({"a": np.zeros(2), "b": (1, 2.0)}, "x")
    for bad in (np.nan, np.inf, -np.inf):
        value = {"a": np.zeros(2), "b": (1, np.array([[0.0, bad, bad]]))}
        with pytest.raises(ValueError, match=r"^x\['b'\]\[1\] holds 2 .* of 3"):
            check_finite(value, "x")
    jax.jit(lambda value: check_finite(value, "x"))(np.array(np.nan))


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
    with pytest.raises(TypeError, match="^x must hold real numbers, got dtype"):
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
