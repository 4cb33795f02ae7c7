"""Samplers of unnormalised posteriors on R^D."""

from sbijax.samplers.smc import tempered_smc

__all__ = ["tempered_smc"]
