"""The compiled two-sample test against scikit-learn's and against the optimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier

from sbijax.diagnostics import _mlp, c2st, c2st_compiled
from sbijax.diagnostics.c2st_compiled import _folds


def normal(seed, num_draws=300, num_dims=2, mean=0.0):
    rng = np.random.default_rng(seed)
    return (mean + rng.normal(size=(num_draws, num_dims))).astype(np.float32)


def score(reference, draws, *, seed=0, max_epochs=30):
    return c2st_compiled(jax.random.key(seed), reference, draws, max_epochs=max_epochs)


@pytest.mark.parametrize("shift", [0.0, 1.35, 4.6])
def test_finds_the_best_accuracy_as_scikit_learn_does(shift):
    num_draws = 2_000
    reference, draws = normal(0, num_draws, 1), normal(1, num_draws, 1, mean=shift)
    accuracy = float(score(reference, draws, max_epochs=10_000))
    best = norm.cdf(shift / 2)
    # Binomial error of 4,000 labels; .003 for a boundary that is slightly off.
    tolerance = 3.5 * np.sqrt(best * (1 - best) / (2 * num_draws)) + 0.003
    assert accuracy == pytest.approx(best, abs=tolerance)
    assert accuracy == pytest.approx(c2st(reference, draws), abs=tolerance)


def test_disjoint_samples_are_told_apart():
    assert (
        c2st_compiled(jax.random.key(0), normal(0, 100), normal(1, 100, mean=50.0))
        == 1.0
    )


def sklearn_start(rows, seed=0):
    """A classifier of scikit-learn after one epoch, to go on from, and its weights."""
    classifier = MLPClassifier((6, 6), max_iter=1, warm_start=True, random_state=seed)
    classifier.fit(rows.x, rows.label)
    return classifier, to_weights(classifier)


def to_weights(classifier):
    (w1, w2, w3), (b1, b2, b3) = classifier.coefs_, classifier.intercepts_
    leaves = (w1.T, b1, w2.T, b2, w3[:, 0], b3[0])
    # Copies: scikit-learn goes on to train its own arrays in place.
    return _mlp.Weights(*(jnp.array(leaf, jnp.float32) for leaf in leaves))


def labelled(num_rows):
    x = np.concatenate([normal(0, num_rows), normal(1, num_rows, mean=1.0)])
    return _mlp.Rows(x, np.repeat([0.0, 1.0], num_rows), np.ones(2 * num_rows))


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer. Maximum iterations")
@pytest.mark.parametrize("max_epochs", [7, 10_000])
def test_training_is_that_of_scikit_learn(max_epochs):
    rows = labelled(80)  # one batch: the order of the rows has no effect
    classifier, start = sklearn_start(rows)
    classifier.set_params(max_iter=max_epochs).fit(rows.x, rows.label)
    rows = jax.tree.map(jnp.asarray, rows)
    mix = jax.random.permutation(jax.random.key(0), 160)
    end, num_epochs = jax.jit(_mlp.fit)(
        jax.random.key(0), start, rows, mix, max_epochs=max_epochs
    )
    # A loss at the limit of the tolerance can move the end by an epoch or two.
    assert abs(num_epochs - classifier.n_iter_) <= 2
    if max_epochs == 7:
        assert num_epochs == 7
        for ours, theirs in zip(end, to_weights(classifier), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        assert 50 < num_epochs < 10_000


def objective(weights, rows):
    z = _mlp.logits(weights, rows.x)
    loss = jnp.mean(jax.nn.softplus(z) - rows.label * z)
    norms = sum(jnp.sum(w**2) for w in (weights.w1, weights.w2, weights.w3))
    return loss + 0.5e-4 * norms / len(rows.label)


def test_gradients_are_those_of_the_objective_and_padding_has_no_effect():
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), labelled(10))
    weights = _mlp.init(jax.random.key(0), 2, 6)
    value, grads = jax.value_and_grad(objective)(weights, rows)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:3]]), rows)
    padded = padded._replace(weight=jnp.arange(23) < 20)
    batch = padded._replace(x=padded.x.T, weight=padded.weight.astype(jnp.float32))
    total, written_out = _mlp._loss_and_grads(weights, batch)
    np.testing.assert_allclose(total, 20 * value, rtol=1e-5)
    for ours, expected in zip(written_out, grads, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_init_has_the_bounds_of_each_layer():
    weights = _mlp.init(jax.random.key(0), 30, 300)
    for leaves, fans in (("w1 b1", 330), ("w2 b2", 600), ("w3", 301)):
        for name in leaves.split():
            bound = np.sqrt(6 / fans)
            largest = np.abs(getattr(weights, name)).max()
            assert 0.97 * bound < largest <= bound


def test_each_epoch_has_all_rows_in_batches_of_200():
    rows = _mlp.Rows(jnp.arange(450.0)[:, None], jnp.zeros(450), jnp.ones(450))
    batches = _mlp._batches(rows, jax.random.permutation(jax.random.key(0), 450))
    assert batches.x.shape == (3, 1, 200)
    assert batches.weight.sum(axis=1).tolist() == [200.0, 200.0, 50.0]
    seen = batches.x[:, 0][batches.weight > 0]
    assert sorted(seen.tolist()) == list(range(450))


@pytest.mark.parametrize("num_rows", [10, 53, 54])
def test_folds_are_those_of_scikit_learn(num_rows):
    (trains, train_weights), (tests, test_weights) = _folds(num_rows)
    expected = list(KFold(5).split(np.zeros(num_rows)))
    for i, (train, test) in enumerate(expected):
        assert trains[i][train_weights[i] > 0].tolist() == train.tolist()
        assert tests[i][test_weights[i] > 0].tolist() == test.tolist()


def test_samples_of_unequal_length():
    pair = normal(0, 30), normal(1, 33, mean=9.0)
    assert score(*pair, max_epochs=10_000) == 1.0


def test_vmap_equals_loop():
    keys = jax.random.split(jax.random.key(0), 3)
    reference = np.stack([normal(i, 61) for i in range(3)])
    draws = np.stack([normal(9 + i, 61, mean=0.5 * i) for i in range(3)])
    one = partial(c2st_compiled, max_epochs=30)
    loop = [float(one(*case)) for case in zip(keys, reference, draws, strict=True)]
    batch = jax.jit(jax.vmap(one))(jax.random.clone(keys), reference, draws)
    # Products of another shape round differently: one of 122 labels may turn.
    np.testing.assert_allclose(batch, loop, atol=1.5 / 122)
    assert batch.shape == (3,)
    assert len(set(loop)) == 3


def test_the_key_decides():
    reference, draws = normal(0), normal(1, mean=0.5)
    first, again = score(reference, draws), score(reference, draws)
    assert first == again != score(reference, draws, seed=1)


def test_units_have_no_effect():
    # On a grid, and with powers of two, shift and scale lose no digit.
    samples = normal(0), normal(1, mean=1.0)
    reference, draws = (np.round(1024 * sample) / 1024 for sample in samples)
    scale, shift = np.array([0.25, 8.0]), np.array([64.0, -32.0])
    accuracy = score(reference, draws)
    assert score(scale * reference + shift, scale * draws + shift) == accuracy
    assert 0.6 < accuracy < 0.9


def test_pytrees_equal_arrays():
    reference, draws = normal(0), normal(1, mean=1.0)

    def as_tree(sample):
        return {"a": jnp.asarray(sample[:, 0]), "b": jnp.asarray(sample[:, 1:])}

    assert score(as_tree(reference), as_tree(draws)) == score(reference, draws)


def test_double_precision_is_standardised_and_then_rounded():
    reference, draws = normal(0, 61), normal(1, 61, mean=50.0)
    pair = np.float64(1e9) + reference, np.float64(1e9) + draws
    with jax.enable_x64(True):
        accuracy = score(*pair, max_epochs=10_000)
    assert (accuracy, accuracy.dtype) == (1.0, np.float32)
    with pytest.raises(ValueError, match="reference has no spread in column 0, 1"):
        score(*pair)


def test_traced_faults_give_nan():
    good, missing, endless, flat = np.stack([normal(i, 20) for i in range(4)])
    missing[3, 1], endless[3, 1], flat[:, 1] = np.nan, np.inf, 3.0
    pairs = [(good, missing), (good, endless), (missing, good), (flat, good)]
    keys = jax.random.split(jax.random.key(0), 4)
    accuracy = jax.vmap(c2st_compiled)(keys, *map(np.stack, zip(*pairs, strict=True)))
    assert np.isnan(accuracy).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="max_epochs must be at least 1, got 0"):
        score(normal(0), normal(1), max_epochs=0)
    with pytest.raises(TypeError, match="key must be a typed PRNG key"):
        c2st_compiled(normal(0), normal(1), normal(2))
    with pytest.raises(ValueError, match="same parameters"):
        jax.jit(score)(normal(0), normal(1)[:, :1])
