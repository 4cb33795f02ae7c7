"""Samplers of unnormalised posteriors on R^D.

Each factory returns a `Sampler`: `(key, target, *, num_samples) -> (positions
[C, n, D], ChainInfo)`, for a `Target` of prior and likelihood.
"""

from sbijax.samplers.flow_langevin import ScoreSampler, annealed_langevin
from sbijax.samplers.flow_ode import FlowSampler, ode
from sbijax.samplers.flow_sde import sde
from sbijax.samplers.importance import importance_resampling
from sbijax.samplers.mcmc import hmc, mala, nuts, slice_sampling
from sbijax.samplers.nested import nested_sampling
from sbijax.samplers.smc import tempered_smc
from sbijax.samplers.variational import (
    forward_kl,
    importance_weighted,
    pathfinder,
    reverse_kl,
    variational,
)

__all__ = [
    "FlowSampler",
    "ScoreSampler",
    "annealed_langevin",
    "forward_kl",
    "hmc",
    "importance_resampling",
    "importance_weighted",
    "mala",
    "nested_sampling",
    "nuts",
    "ode",
    "pathfinder",
    "reverse_kl",
    "sde",
    "slice_sampling",
    "tempered_smc",
    "variational",
]
