"""SLCP with distractors: the order of x, the mixture, and what theta depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import solve_triangular

from sbijax.simulators import slcp, slcp_distractors

NUM_LEADING = 20  # of 92: beyond, L cannot be inverted in floating point
SIZE = 4000


def mixture():
    """The numbers of the benchmark, drawn as it draws them, from one seed."""
    rng = np.random.RandomState(42)
    loc = np.array([15.0 * rng.normal(size=92) for _ in range(20)])
    tril = []
    for _ in range(20):
        below = np.tril(rng.normal(size=(92, 92)))
        tril.append(3.0 * (below + np.diag(np.exp(rng.normal(size=92)))))
    return loc, np.array(tril), rng.permutation(100)


@pytest.fixture(scope="module")
def split_draws():
    """4,000 draws in the order before the permutation: y `[S, 8]`, d `[S, 92]`."""
    theta = jnp.array([0.7, -2.9, -1.0, -0.9, 0.6])
    keys = jax.random.split(jax.random.key(0), SIZE)
    xs = jax.jit(jax.vmap(slcp_distractors().simulator, (0, None)))(keys, theta)
    before = np.empty((SIZE, 100))
    before[:, mixture()[2]] = xs
    return theta, before[:, :8], before[:, 8:]


def component_and_distance(d):
    """The nearest component of each d `[S, 92]`, and its |L^-1 (d - m)|^2."""
    loc, tril, _ = mixture()
    n = NUM_LEADING
    distances = [
        np.sum(solve_triangular(L[:n, :n], (d - m)[:, :n].T, lower=True) ** 2, axis=0)
        for m, L in zip(loc, tril, strict=True)
    ]
    return np.argmin(distances, axis=0), np.min(distances, axis=0)


def test_observation_is_that_of_slcp_with_92_more():
    before = np.empty(100, np.float32)
    before[mixture()[2]] = slcp_distractors().x_observed
    np.testing.assert_array_equal(before[:8], slcp().x_observed)
    _, distance = component_and_distance(before[None, 8:].astype(float))
    # Drawn by the benchmark: far from all components if it had another mixture.
    assert stats.f(NUM_LEADING, 2).sf(distance / NUM_LEADING) > 1e-3


def test_informative_columns_are_draws_of_slcp(split_draws):
    theta, y, _ = split_draws
    s1, s2 = theta[2] ** 2, theta[3] ** 2
    points = y.reshape(-1, 2) - np.asarray(theta[:2])
    e1 = points[:, 0] / s1
    rho = np.tanh(theta[4])
    e2 = (points[:, 1] / s2 - rho * e1) / np.sqrt(1.0 - rho**2)
    for e in (e1, e2):
        assert stats.kstest(e, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(e1, e2)[0, 1]) < 4.5 / np.sqrt(4 * SIZE)


def test_distractors_come_from_the_mixture(split_draws):
    _, _, d = split_draws
    loc, tril, _ = mixture()
    component, distance = component_and_distance(d)
    assert stats.chisquare(np.bincount(component, minlength=20)).pvalue > 1e-3
    radius = stats.f(NUM_LEADING, 2)
    assert stats.kstest(distance / NUM_LEADING, radius.cdf).pvalue > 1e-3
    # Of each distractor, and of sums of all, the marginal is a t with 2 degrees.
    directions = np.random.default_rng(1).normal(size=(3, 92))
    for a in (*np.eye(92)[[0, 30, 60, 91]], *directions):
        scale = np.linalg.norm(a @ tril[component], axis=1)
        t = np.sum(a * (d - loc[component]), axis=1) / scale
        assert stats.kstest(t, stats.t(2).cdf).pvalue > 1e-4


def test_distractors_do_not_depend_on_theta_or_y(split_draws):
    theta, y, d = split_draws
    key = jax.random.key(2)
    one, two = (
        slcp_distractors().simulator(jax.random.clone(key), t) for t in (theta, -theta)
    )
    assert np.sum(np.asarray(one == two)) == 92
    loc = mixture()[0]
    signs = d > loc[component_and_distance(d)[0]]
    of_y = y > np.median(y, axis=0)
    correlation = np.corrcoef(signs.T, of_y.T)[:92, 92:]
    assert np.abs(correlation).max() < 5.0 / np.sqrt(SIZE)


def test_log_likelihood_is_that_of_the_informative_columns():
    task, base = slcp_distractors(), slcp()
    theta = task.prior.sample(jax.random.key(3))
    expected = base.log_likelihood(theta, base.x_observed)
    x = task.x_observed
    np.testing.assert_allclose(task.log_likelihood(theta, x), expected, rtol=1e-6)
    gradient = jax.grad(task.log_likelihood, argnums=1)(theta, x)
    informative = np.isin(x, base.x_observed)
    np.testing.assert_array_equal(np.asarray(gradient) != 0.0, informative)


def test_prior_is_shared_with_slcp():
    assert slcp_distractors().prior is slcp().prior
