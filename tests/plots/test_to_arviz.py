"""Conversion to ArviZ, with the version that is installed."""

import arviz
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.plots import to_arviz

RNG = np.random.default_rng(0)
IS_NEW = int(arviz.__version__.split(".")[0]) >= 1


def make_draws(*lead):
    return {"alpha": RNG.normal(size=lead), "beta": RNG.normal(size=(*lead, 2))}


def test_draws_become_one_chain():
    draws = make_draws(100)
    data = to_arviz(draws)
    assert type(data).__name__ == ("DataTree" if IS_NEW else "InferenceData")
    posterior = data["posterior"]
    assert posterior["alpha"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(posterior["alpha"].values, draws["alpha"][None])
    assert posterior["beta"].shape == (1, 100, 2)
    assert list(data.children if IS_NEW else data.groups()) == ["posterior"]


def test_chains_stay_apart():
    draws = make_draws(4, 50)
    data = to_arviz(draws, num_chains=4)
    np.testing.assert_array_equal(data["posterior"]["beta"].values, draws["beta"])
    summary = arviz.summary(data)
    assert list(summary.index) == ["alpha", "beta[0]", "beta[1]"]


def test_data_and_predictions_have_their_groups():
    x = RNG.normal(size=21)
    data = to_arviz(
        make_draws(2, 30),
        num_chains=2,
        x_observed=x,
        predictive=RNG.normal(size=(2, 30, 21)),
    )
    np.testing.assert_array_equal(data["observed_data"]["x"].values, x)
    assert data["posterior_predictive"]["x"].shape == (2, 30, 21)
    single = to_arviz(
        make_draws(30), x_observed={"y": 3.0}, predictive={"y": RNG.normal(size=30)}
    )
    assert single["posterior_predictive"]["y"].shape == (1, 30)
    assert float(single["observed_data"]["y"].values.squeeze()) == 3.0


def test_names_of_bare_arrays_and_nested_trees():
    assert "theta" in to_arviz(jnp.zeros((30, 2)))["posterior"]
    nested = {"group": {"a": np.zeros(30)}, "pair": (np.zeros(30), np.zeros(30))}
    posterior = to_arviz(nested)["posterior"]
    assert set(posterior.data_vars) == {"group.a", "pair[0]", "pair[1]"}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"draws must have leaves \[S, ...\]"):
        to_arviz({"a": np.zeros(30), "b": np.zeros(20)})
    with pytest.raises(ValueError, match=r"draws must have leaves \[4, S, ...\]"):
        to_arviz({"a": np.zeros((30, 4))}, num_chains=4)
    with pytest.raises(ValueError, match="predictive must hold one data set for each"):
        to_arviz(make_draws(30), predictive=np.zeros((20, 3)))
    with pytest.raises(ValueError, match="draws must have leaves"):
        to_arviz(1.0)
