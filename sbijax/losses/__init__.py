"""Training objectives; each receives the callables it scores."""

from sbijax.losses.density import negative_log_density
from sbijax.losses.diffusion import DiffusionLoss, Field, edm, flow_matching, ve, vp
from sbijax.losses.ratio import Contrast, RatioLoss, balanced, nre_a, nre_b, nre_c

__all__ = [
    "Contrast",
    "DiffusionLoss",
    "Field",
    "RatioLoss",
    "balanced",
    "edm",
    "flow_matching",
    "negative_log_density",
    "nre_a",
    "nre_b",
    "nre_c",
    "ve",
    "vp",
]
