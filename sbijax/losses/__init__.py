"""Training objectives; each receives the callables it scores."""

from sbijax.losses.density import negative_log_density
from sbijax.losses.ratio import LogRatios, RatioLoss, balanced, nre_a, nre_b, nre_c

__all__ = [
    "LogRatios",
    "RatioLoss",
    "balanced",
    "negative_log_density",
    "nre_a",
    "nre_b",
    "nre_c",
]
