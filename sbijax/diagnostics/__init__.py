"""Checks of inference: calibration, coverage, predictions, two-sample tests."""

from sbijax.diagnostics.c2st import c2st, c2st_forest
from sbijax.diagnostics.c2st_compiled import c2st_compiled
from sbijax.diagnostics.coverage import CoverageResult, coverage
from sbijax.diagnostics.log_score import log_score
from sbijax.diagnostics.predictive import posterior_predictive
from sbijax.diagnostics.sbc import SBCResult, sbc, sbc_result
from sbijax.diagnostics.summary import sbc_summary, sbc_table
from sbijax.diagnostics.uniformity import (
    UniformityBand,
    uniformity_band,
    uniformity_p_value,
)

__all__ = [
    "CoverageResult",
    "SBCResult",
    "UniformityBand",
    "c2st",
    "c2st_compiled",
    "c2st_forest",
    "coverage",
    "log_score",
    "posterior_predictive",
    "sbc",
    "sbc_result",
    "sbc_summary",
    "sbc_table",
    "uniformity_band",
    "uniformity_p_value",
]
