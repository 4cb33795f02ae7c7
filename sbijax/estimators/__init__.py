"""One factory per method: assembly of densities, losses and samplers."""

from sbijax.estimators.npe import make_npe

__all__ = ["make_npe"]
