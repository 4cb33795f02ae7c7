"""Figures of posteriors, calibration, training and predictions; ArviZ."""

from sbijax.plots.coverage_curve import coverage_curve
from sbijax.plots.loss_curve import loss_curve
from sbijax.plots.pairs import pairs
from sbijax.plots.predictive import predictive
from sbijax.plots.sbc_ranks import sbc_ranks
from sbijax.plots.to_arviz import to_arviz

__all__ = [
    "coverage_curve",
    "loss_curve",
    "pairs",
    "predictive",
    "sbc_ranks",
    "to_arviz",
]
