"""One factory per method: assembly of densities, losses and samplers."""

from sbijax.estimators.ensemble import ensemble
from sbijax.estimators.npe import make_npe

__all__ = ["ensemble", "make_npe"]
