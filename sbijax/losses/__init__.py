"""Training objectives; each receives the callables it scores."""

from sbijax.losses.density import negative_log_density

__all__ = ["negative_log_density"]
