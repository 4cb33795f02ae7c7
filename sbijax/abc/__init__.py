"""Parts of approximate Bayesian computation: distances, summaries, kernels."""

from sbijax.abc.adjustment import (
    Adjustment,
    linear_adjustment,
    nonlinear_adjustment,
)
from sbijax.abc.distances import Distance, euclidean, mmd, p_norm, wasserstein
from sbijax.abc.kernels import Kernel, local_kernel, normal_kernel
from sbijax.abc.summaries import Summary, posterior_mean, semi_automatic

__all__ = [
    "Adjustment",
    "Distance",
    "Kernel",
    "Summary",
    "euclidean",
    "linear_adjustment",
    "local_kernel",
    "mmd",
    "nonlinear_adjustment",
    "normal_kernel",
    "p_norm",
    "posterior_mean",
    "semi_automatic",
    "wasserstein",
]
