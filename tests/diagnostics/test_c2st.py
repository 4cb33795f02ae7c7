"""The classifier two-sample test against its definition."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier

from sbijax.diagnostics import c2st, c2st_compiled, c2st_forest


def normal(seed, num_draws=300, num_dims=2, sd=1.0, mean=0.0):
    rng = np.random.default_rng(seed)
    return mean + sd * rng.normal(size=(num_draws, num_dims)).astype(np.float32)


def direct(reference, draws, seed):
    """The benchmark's protocol, fold by fold."""
    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    data = np.concatenate([(reference - mean) / sd, (draws - mean) / sd])
    labels = np.repeat([0.0, 1.0], [len(reference), len(draws)])
    scores = []
    folds = KFold(5, shuffle=True, random_state=seed)
    for train, test in folds.split(data):
        classifier = MLPClassifier(
            (10 * data.shape[1],) * 2, max_iter=10_000, random_state=seed
        )
        classifier.fit(data[train], labels[train])
        scores.append(np.mean(classifier.predict(data[test]) == labels[test]))
    return np.mean(scores)


@pytest.mark.parametrize("seed", [1, 7])
def test_agrees_with_the_definition(seed):
    reference, draws = normal(0, sd=3.0), normal(1, sd=4.0, mean=2.0)
    expected = direct(reference.astype(float), draws.astype(float), seed)
    # Rounding of the standardised data can turn a few of 600 predictions.
    assert c2st(reference, draws, seed=seed) == pytest.approx(expected, abs=0.01)
    assert 0.6 < expected < 0.8


def test_same_distribution_is_near_one_half():
    accuracy = c2st(normal(0, 1000), normal(1, 1000))
    # A classifier with nothing to learn guesses: sd 0.011 over 2,000 labels.
    assert abs(accuracy - 0.5) < 3.5 * 0.5 / np.sqrt(2000)


def test_disjoint_samples_are_told_apart():
    assert c2st(normal(0, 100), normal(1, 100, mean=50.0)) == 1.0


def test_protocol_is_the_benchmarks(monkeypatch):
    seen = {}

    def record(classifier, data, labels, **options):
        seen.update(options, classifier=classifier, data=data, labels=labels)
        return np.array([0.5, 0.7])

    monkeypatch.setattr("sklearn.model_selection.cross_val_score", record)
    reference, draws = normal(0, 50, 3, sd=100.0, mean=7.0), normal(1, 40, 3)
    assert c2st(reference, draws) == pytest.approx(0.6)
    first, second = seen["data"][:50], seen["data"][50:]
    np.testing.assert_allclose(first.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(first.std(0, ddof=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(second.std(0), draws.std(0) / 100.0, rtol=0.3)
    assert seen["labels"].tolist() == [0.0] * 50 + [1.0] * 40
    assert seen["scoring"] == "accuracy"
    folds, classifier = seen["cv"], seen["classifier"]
    assert (folds.n_splits, folds.shuffle, folds.random_state) == (5, True, 1)
    facts = ("activation", "hidden_layer_sizes", "max_iter", "solver", "random_state")
    assert [getattr(classifier, name) for name in facts] == [
        "relu",
        (30, 30),
        10_000,
        "adam",
        1,
    ]


def test_pytrees_equal_arrays():
    reference, draws = normal(0, 40, 3), normal(1, 40, 3, mean=1.0)

    def as_tree(sample):
        return {"a": jnp.asarray(sample[:, 0]), "b": jnp.asarray(sample[:, 1:])}

    expected = c2st(reference, draws)
    assert c2st(as_tree(reference), as_tree(draws)) == expected
    assert 0.5 < expected < 1.0


def test_forest_agrees_with_the_definition():
    reference, draws = normal(0, 200, sd=3.0), normal(1, 200, sd=3.0, mean=2.0)
    data = np.concatenate([reference, draws])
    labels = np.repeat([0.0, 1.0], 200)
    scores = []
    for train, test in KFold(5, shuffle=True, random_state=3).split(data):
        forest = RandomForestClassifier(20, random_state=3)
        forest.fit(data[train], labels[train])
        scores.append(np.mean(forest.predict(data[test]) == labels[test]))
    # Trees do not care for scale: only ties of rounded data can differ.
    score = c2st_forest(reference, draws, seed=3, num_trees=20)
    assert score == pytest.approx(np.mean(scores), abs=0.005)
    assert 0.55 < score < 0.75


def test_forest_finds_an_edge_that_the_mlp_smooths_over():
    rng = np.random.default_rng(0)
    reference = rng.uniform(size=(300, 1))
    comb = np.floor(rng.uniform(size=(300, 1)) * 10.0) / 10.0 + reference / 20.0
    assert c2st_forest(reference, comb, num_trees=20) > c2st(reference, comb) + 0.1


def test_forest_refuses_a_forest_without_trees():
    with pytest.raises(ValueError, match="num_trees must be at least 1, got 0"):
        c2st_forest(normal(0, 20), normal(1, 20), num_trees=0)


@pytest.mark.parametrize(
    "score",
    [c2st, c2st_forest, lambda *pair: c2st_compiled(jax.random.key(0), *pair)],
    ids=["c2st", "c2st_forest", "c2st_compiled"],
)
def test_bad_input_is_refused(score):
    good = normal(0, 20)
    bad = good.copy()
    bad[3, 1] = np.nan
    bad[4, 0] = np.inf
    with pytest.raises(ValueError, match="draws holds non-finite values in 2 of 20"):
        score(good, bad)
    with pytest.raises(ValueError, match="reference holds non-finite"):
        score(bad, good)
    with pytest.raises(ValueError, match=r"same parameters, got float32\[20,2\]"):
        score(good, good[:, :1])
    with pytest.raises(ValueError, match="same parameters"):
        score({"a": good}, {"b": good})
    with pytest.raises(ValueError, match="4 draws, at least 5"):
        score(good[:4], good)
    with pytest.raises(ValueError, match="no spread in column 1"):
        score(good * np.array([1.0, 0.0]), good)
    with pytest.raises(ValueError, match="one length S"):
        score({"a": good, "b": good[:3]}, good)


@pytest.mark.parametrize("score", [c2st, c2st_forest])
def test_missing_scikit_learn_says_how_to_install(monkeypatch, score):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        score(normal(0, 20), normal(1, 20))
