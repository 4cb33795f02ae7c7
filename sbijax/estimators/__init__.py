"""One factory per method: assembly of densities, losses and samplers."""

from sbijax.estimators.ensemble import ensemble
from sbijax.estimators.nle import make_nle
from sbijax.estimators.npe import make_npe
from sbijax.estimators.nre import make_nre
from sbijax.estimators.trials import iid

__all__ = ["ensemble", "iid", "make_nle", "make_npe", "make_nre"]
