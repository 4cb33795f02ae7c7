"""Training objectives; each receives the callables it scores."""

from sbijax.losses.posterior import negative_log_posterior

__all__ = ["negative_log_posterior"]
