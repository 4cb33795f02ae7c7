"""Every check lets the right thing pass and says what is wrong with the others."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.base import Estimator, Network, Params
from sbijax.checks import (
    check_count,
    check_finite,
    check_key,
    check_like,
    check_network,
    check_record,
    check_sampler,
    describe,
    is_real,
)
from sbijax.samplers import nuts

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
        (None, "None"),
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


def test_complex_numbers_are_refused_rather_than_cut():
    with pytest.raises(TypeError, match=r"^x must hold real .* got complex64\[2\]"):
        check_like(np.zeros(2, np.complex64), jnp.zeros(2), "x")


@pytest.mark.parametrize(
    ("leaf", "real"),
    [(1, True), (True, True), (jnp.zeros(2, jnp.bfloat16), True), (np.uint8(1), True)]
    + [(1j, False), ("a", False), (None, False), (np.array([None]), False)],
)
def test_real_numbers(leaf, real):
    assert is_real(leaf) == real


# Records ----------------------------------------------------------------------


class Widened(NamedTuple):
    net: dict
    stats: dict
    more: int


@pytest.mark.parametrize("value", [Params({}, {}), Widened({}, {}, 1)])
def test_records_and_wider_ones_pass(value):
    check_record(value, Params, "params", "")


@pytest.mark.parametrize("value", [Params, ({}, {}), Network(len, len), {}, None, len])
def test_other_things_are_no_records(value):
    with pytest.raises(TypeError, match="^params must be of type Params, got .* Mend"):
        check_record(value, Params, "params", "Mend it.")


def test_the_function_that_makes_a_record_is_named():
    def make_it():
        return Estimator

    with pytest.raises(TypeError, match="got the function make_it; it may have to be"):
        check_record(make_it, Estimator, "estimator", "")


@pytest.mark.parametrize("value", [Network(len, len), nn.Dense(2)])
def test_networks_pass(value):
    check_network(value, "embedding")


@pytest.mark.parametrize("value", [nn.Dense, Params({}, {}), "mlp", len])
def test_other_things_are_no_networks(value):
    with pytest.raises(TypeError, match="^embedding must be a network, got"):
        check_network(value, "embedding")


@pytest.mark.parametrize("value", [nuts, 3, len, lambda key, target: None])
def test_other_things_are_no_samplers(value):
    with pytest.raises(TypeError, match="^sampler must be a sampler, got"):
        check_sampler(value)
