"""One factory per method: assembly of densities, losses and samplers."""

from sbijax.estimators.ensemble import ensemble
from sbijax.estimators.fmpe import make_fmpe
from sbijax.estimators.missing import with_missing
from sbijax.estimators.nle import make_nle
from sbijax.estimators.npe import make_npe
from sbijax.estimators.npse import make_npse
from sbijax.estimators.nre import make_nre
from sbijax.estimators.rejection_abc import make_rejection_abc
from sbijax.estimators.smc_abc import make_smc_abc
from sbijax.estimators.trials import iid

__all__ = [
    "ensemble",
    "iid",
    "make_fmpe",
    "make_nle",
    "make_npe",
    "make_npse",
    "make_nre",
    "make_rejection_abc",
    "make_smc_abc",
    "with_missing",
]
