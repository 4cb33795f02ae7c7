"""The losses of NRE against numpy, with the numbers written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbijax.base import Params, Simulations, Stats
from sbijax.losses import balanced, nre_a, nre_b, nre_c

THETA = np.array([0.5, -1.0, 2.0])
X = np.array([1.0, -0.5, 1.5])
WEIGHT = np.array([1.0, 0.5, 2.0])
SLOPE = 0.7

PAIR = np.array([1.0, 0.0, 2.0])
OTHER = np.array([2, 0, 0])


def contrast(params, key, theta, x, *, num_wrong, local_share):
    """log r(theta, x) = slope * theta * x; all wrong thetas are that of one other."""
    rows = np.stack([np.arange(3), *[OTHER] * num_wrong], axis=1)
    return params.net * theta[rows] * x[:, None]


def make_params(slope=SLOPE):
    example = Simulations(jnp.array(0.3), jnp.array(0.3), jnp.array(1.0))
    return Params(net=jnp.asarray(slope), stats=Stats(example, {}, {}))


def make_batch(theta=THETA, x=X, weight=PAIR):
    return Simulations(*(jnp.asarray(a, jnp.float32) for a in (theta, x, weight)))


def value_of(loss, batch=None, slope=SLOPE, seed=0):
    batch = make_batch() if batch is None else batch
    return loss(contrast)(make_params(slope), jax.random.key(seed), batch)


def sigmoid(value):
    return 1.0 / (1.0 + np.exp(-value))


def right_and_wrong():
    """Log-ratios of the two rows with their own and with the other theta."""
    right = SLOPE * np.array([0.5 * 1.0, 2.0 * 1.5])
    wrong = SLOPE * np.array([2.0 * 1.0, 0.5 * 1.5])
    np.testing.assert_allclose(right, [0.35, 2.1])
    np.testing.assert_allclose(wrong, [1.4, 0.525])
    return right, wrong


SHARE = np.array([1.0, 2.0]) / 3.0


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_nre_a(num_negatives):
    right, wrong = right_and_wrong()
    each = -np.log(sigmoid(right)) - np.log(sigmoid(-wrong))
    expected = np.sum(SHARE * each)
    np.testing.assert_allclose(expected, 1.454754, rtol=1e-6)
    found = value_of(nre_a(num_negatives=num_negatives))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_balanced():
    right, wrong = right_and_wrong()
    each = -np.log(sigmoid(right)) - np.log(sigmoid(-wrong))
    balance = np.sum(SHARE * (sigmoid(right) + sigmoid(wrong))) - 1.0
    expected = np.sum(SHARE * each) + 10.0 * balance**2
    found = value_of(balanced(strength=10.0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(balance) > 0.1


@pytest.mark.parametrize("num_atoms", [2, 4])
def test_nre_b(num_atoms):
    right, wrong = right_and_wrong()
    total = np.exp(right) + (num_atoms - 1) * np.exp(wrong)
    expected = -np.sum(SHARE * (right - np.log(total)))
    found = value_of(nre_b(num_atoms=num_atoms))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("num_atoms", "gamma"), [(1, 1.0), (3, 0.5), (2, 4.0)])
def test_nre_c(num_atoms, gamma):
    right, wrong = right_and_wrong()
    odds = gamma / num_atoms
    among_wrong = 1.0 / (1.0 + odds * num_atoms * np.exp(wrong))
    total = np.exp(right) + (num_atoms - 1) * np.exp(wrong)
    found_right = odds * np.exp(right) / (1.0 + odds * total)
    p_none, p_some = 1.0 / (1.0 + gamma), gamma / (1.0 + gamma)
    each = -p_none * np.log(among_wrong) - p_some * np.log(found_right)
    found = value_of(nre_c(num_atoms=num_atoms, gamma=gamma))
    np.testing.assert_allclose(found, np.sum(SHARE * each), rtol=1e-5)


def test_one_atom_and_even_odds_are_binary_cross_entropy():
    found = value_of(nre_c(num_atoms=1, gamma=1.0))
    np.testing.assert_allclose(2.0 * found, value_of(nre_a()), rtol=1e-5)


MAKERS = {
    "a": nre_a,
    "balanced": balanced,
    "b": partial(nre_b, num_atoms=3),
    "c": partial(nre_c, num_atoms=3),
}
LOSSES = {name: make() for name, make in MAKERS.items()}
KEY = jax.random.key(0)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_rows_of_weight_zero_have_no_effect_whatever_they_hold(loss, junk):
    def score(batch):
        return jax.value_and_grad(
            lambda net: loss(contrast)(
                make_params()._replace(net=net), jax.random.key(0), batch
            )
        )(jnp.array(SLOPE))

    theta, x = THETA.copy(), X.copy()
    theta[1], x[1] = junk, junk
    for one, two in zip(score(make_batch()), score(make_batch(theta, x)), strict=True):
        assert one == two


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_batches_of_little_weight_are_finite(loss, weight):
    batch = make_batch(weight=np.array(weight))
    value, grad = jax.value_and_grad(lambda net: value_of(loss, batch, net))(SLOPE)
    assert np.isfinite(value)
    assert np.isfinite(grad)


@pytest.mark.parametrize("local_share", [0.0, 0.5])
@pytest.mark.parametrize("name", MAKERS)
def test_minimum_is_the_true_ratio(name, local_share):
    # theta, x ~ +-1 with correlation: log r(theta, x) = a + b theta x.
    key, pair_key, flip_key = jax.random.split(jax.random.key(1), 3)
    num, stay, near = 20_000, 0.8, 0.7
    theta = jnp.where(jax.random.bernoulli(pair_key, 0.5, (num,)), 1.0, -1.0)
    x = jnp.where(jax.random.bernoulli(flip_key, stay, (num,)), theta, -theta)
    batch = Simulations(theta, x, jnp.ones(num))
    # Wrong thetas are +-1 with even chances, or equal x with probability .7.
    equal = 0.5 * (1.0 - local_share) + near * local_share

    def contrast(params, key, theta, x, *, num_wrong, local_share):
        agrees = jax.random.bernoulli(key, equal, (num, num_wrong))
        sign = jnp.append((theta * x)[:, None], jnp.where(agrees, 1.0, -1.0), axis=1)
        log_m = jnp.log(jnp.where(sign > 0, equal, 1.0 - equal) / 0.5)
        return params.net[0] + params.net[1] * sign - log_m

    # p(x | theta) / p(x) is 1.6 for equal signs, .4 for others.
    mean = (np.log(1.6) + np.log(0.4)) / 2
    half = (np.log(1.6) - np.log(0.4)) / 2
    loss = MAKERS[name](local_share=local_share)(contrast)

    def score(net):
        return loss(make_params()._replace(net=net), jax.random.clone(key), batch)

    net = jnp.zeros(2)
    step = jax.jit(
        lambda n: n - jnp.linalg.pinv(jax.hessian(score)(n)) @ jax.grad(score)(n)
    )
    for _ in range(20):
        net = step(net)
    # 1 / sqrt(N) times a factor of order one for the odds, and five of them.
    assert abs(net[1] - half) < 5 * 3 / num**0.5
    if name != "b":  # which does not know the part that is the same for all theta
        assert abs(net[0] - mean) < 5 * 3 / num**0.5


@pytest.mark.parametrize(
    ("name", "expected"), [("a", 0.5), ("b", 0.5), ("c", 0.5), ("balanced", 0.0)]
)
def test_share_of_local_thetas_by_default(name, expected):
    def contrast(params, key, theta, x, *, num_wrong, local_share):
        assert local_share == expected
        return jnp.zeros((3, 1 + num_wrong))

    assert np.isfinite(MAKERS[name]()(contrast)(make_params(), KEY, make_batch()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nre_a(num_negatives=0),
        lambda: balanced(num_negatives=0),
        lambda: nre_b(num_atoms=1),
        lambda: nre_c(num_atoms=0),
        lambda: nre_c(gamma=0.0),
        lambda: nre_a(local_share=1.0),
        lambda: nre_b(local_share=-0.1),
    ],
)
def test_bad_configuration_is_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
