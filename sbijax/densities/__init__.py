"""Conditional densities: `Density(init, log_prob, sample)` on vectors."""

from sbijax.densities.autoregressive import autoregressive
from sbijax.densities.coupling import coupling
from sbijax.densities.elementwise import affine, spline
from sbijax.densities.flow import flow, unconditional
from sbijax.densities.mdn import mdn
from sbijax.densities.presets import maf, nsf, nsf_autoregressive

__all__ = [
    "affine",
    "autoregressive",
    "coupling",
    "flow",
    "maf",
    "mdn",
    "nsf",
    "nsf_autoregressive",
    "spline",
    "unconditional",
]
