"""The loss of NPE against numpy, with the numbers written out."""

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Params, Simulations, Stats
from sbijax.losses import negative_log_density

THETA = np.array([1.0, -2.0, 0.5, 3.0])
X = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 0.5]])
WEIGHT = np.array([1.0, 0.5, 0.0, 2.0])


def log_density(params, theta, x):
    """log N(theta; w . x, 1)."""
    return -0.5 * (theta - params.net @ x) ** 2 - 0.5 * jnp.log(2 * jnp.pi)


def make_params(net):
    example = Simulations(jnp.array(1.0), jnp.array([1.0, 0.0]), jnp.array(1.0))
    return Params(net=jnp.asarray(net), stats=Stats(example, {}, {}))


def make_batch(theta=THETA, x=X, weight=WEIGHT):
    return Simulations(*(jnp.asarray(a, jnp.float32) for a in (theta, x, weight)))


LOSS = negative_log_density(log_density)
KEY = jax.random.key(0)


def loss_of(net, batch):
    return LOSS(make_params(net), jax.random.clone(KEY), batch)


def test_value_against_numpy():
    net = np.array([1.0, -1.0])
    residual = THETA - X @ net
    log_q = -0.5 * residual**2 - 0.5 * np.log(2 * np.pi)
    expected = -np.sum(WEIGHT * log_q) / np.sum(WEIGHT)
    np.testing.assert_allclose(residual, [0.0, -1.0, 0.5, 4.5])
    np.testing.assert_allclose(expected, 20.5 / 3.5 + 0.9189385, rtol=1e-6)
    np.testing.assert_allclose(loss_of(net, make_batch()), expected, rtol=1e-6)


def test_gradient_against_numpy():
    # d loss / d w = -sum_n w_n r_n x_n / sum_n w_n.
    net = np.array([1.0, -1.0])
    residual = THETA - X @ net
    expected = -(WEIGHT * residual) @ X / WEIGHT.sum()
    grads = jax.grad(loss_of)(jnp.asarray(net), make_batch())
    np.testing.assert_allclose(grads, expected, rtol=1e-5)


def test_rows_of_weight_zero_have_no_effect_whatever_they_hold():
    net = jnp.array([1.0, -1.0])
    expected = jax.value_and_grad(loss_of)(net, make_batch())
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        theta, x = THETA.copy(), X.copy()
        theta[2], x[2] = junk, junk
        value, grads = jax.value_and_grad(loss_of)(net, make_batch(theta, x))
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(grads, expected[1], rtol=1e-6)


def test_scale_of_the_weights_and_order_do_not_matter():
    net = jnp.array([1.0, -1.0])
    expected = loss_of(net, make_batch())
    np.testing.assert_allclose(
        loss_of(net, make_batch(weight=10.0 * WEIGHT)), expected, rtol=1e-6
    )
    order = [3, 1, 0, 2]
    shuffled = make_batch(THETA[order], X[order], WEIGHT[order])
    np.testing.assert_allclose(loss_of(net, shuffled), expected, rtol=1e-6)


def test_batch_without_weight_has_loss_and_gradient_zero():
    batch = make_batch(np.full(4, np.nan), np.full((4, 2), np.nan), np.zeros(4))
    value, grads = jax.value_and_grad(loss_of)(jnp.array([1.0, -1.0]), batch)
    assert value == 0
    assert np.all(grads == 0)
