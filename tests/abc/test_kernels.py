"""Kernels of populations against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from sbijax import abc
from sbijax.abc.kernels import mixture_log_density


def points(seed, num, num_dims=2):
    return np.random.default_rng(seed).normal(size=(num, num_dims)).astype(np.float32)


@pytest.mark.parametrize("kernel", [abc.normal_kernel(), abc.local_kernel()])
@pytest.mark.parametrize("num_dims", [1, 3])
def test_density_is_that_of_the_mixture(kernel, num_dims):
    centres, z = points(0, 60, num_dims), 2.0 * points(1, 20, num_dims)
    factors = jax.jit(kernel)(jnp.asarray(centres))
    each = [
        multivariate_normal.logpdf(z, c, factor @ factor.T)
        for c, factor in zip(centres, np.asarray(factors, float), strict=True)
    ]
    found = jax.jit(mixture_log_density)(centres, factors, z)
    expected = logsumexp(each, axis=0) - np.log(60)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_normal_kernel_has_the_scaled_covariance():
    centres = points(2, 500) @ np.array([[1.0, 0.8], [0.0, 0.1]], np.float32)
    factor = np.asarray(abc.normal_kernel(scale=2.0)(jnp.asarray(centres)))[7]
    expected = 2.0 * np.cov(centres.T, bias=True)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-3)


def test_local_kernel_sees_its_own_mode():
    left, right = points(3, 50) * 0.01, 5.0 + points(4, 50) * [0.1, 0.02]
    centres = jnp.asarray(np.concatenate([left, right]), jnp.float32)
    factors = abc.local_kernel(num_neighbours=20)(centres)
    spread = np.sqrt(
        np.diagonal(factors @ jnp.swapaxes(factors, 1, 2), axis1=1, axis2=2)
    )
    assert np.all(spread[:50] < 0.1)
    assert np.median(spread[50:, 0] / spread[50:, 1]) > 1.5


def test_equal_centres_do_not_fail():
    centres = jnp.zeros((20, 2))
    for kernel in (abc.normal_kernel(), abc.local_kernel()):
        assert np.all(np.isfinite(kernel(centres)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: abc.normal_kernel(scale=0.0), "scale must be positive"),
        (lambda: abc.local_kernel(num_neighbours=1), "num_neighbours must be at least"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
