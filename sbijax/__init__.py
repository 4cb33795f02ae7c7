"""sbijax: simulation-based inference as pure functions, compiled by JAX.

Public names load on first use, so that importing the package costs nothing
beyond JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbijax import (
        abc,
        densities,
        diagnostics,
        losses,
        networks,
        plots,
        samplers,
        simulators,
    )
    from sbijax.base import (
        AbcInfo,
        ChainInfo,
        Density,
        DiffusionEstimator,
        Estimator,
        LazySimulations,
        LikelihoodEstimator,
        Network,
        Params,
        Prior,
        RatioEstimator,
        Sampler,
        SbijaxWarning,
        Simulations,
        SolverInfo,
        Standardizer,
        Stats,
        Target,
        Trials,
    )
    from sbijax.data import make_simulations, make_trials
    from sbijax.estimators import (
        ensemble,
        iid,
        make_fmpe,
        make_nle,
        make_npe,
        make_npse,
        make_nre,
        make_rejection_abc,
        make_smc_abc,
        with_missing,
    )
    from sbijax.inference import Posterior, infer
    from sbijax.io import load, save
    from sbijax.learned import LearnedLikelihood, learned_factor
    from sbijax.online import train_online
    from sbijax.priors import make_prior
    from sbijax.simulators.python import PythonSimulator, python_simulator
    from sbijax.simulators.simulate import simulate, simulate_to_store
    from sbijax.simulators.store import StoredSimulations, open_simulations
    from sbijax.training import TrainConfig, TrainInfo, fit, train

__all__ = [
    "AbcInfo",
    "ChainInfo",
    "Density",
    "DiffusionEstimator",
    "Estimator",
    "LazySimulations",
    "LearnedLikelihood",
    "LikelihoodEstimator",
    "Network",
    "Params",
    "Posterior",
    "Prior",
    "PythonSimulator",
    "RatioEstimator",
    "Sampler",
    "SbijaxWarning",
    "Simulations",
    "SolverInfo",
    "Standardizer",
    "Stats",
    "StoredSimulations",
    "Target",
    "TrainConfig",
    "TrainInfo",
    "Trials",
    "abc",
    "densities",
    "diagnostics",
    "ensemble",
    "fit",
    "iid",
    "infer",
    "learned_factor",
    "load",
    "losses",
    "make_fmpe",
    "make_nle",
    "make_npe",
    "make_npse",
    "make_nre",
    "make_prior",
    "make_rejection_abc",
    "make_simulations",
    "make_smc_abc",
    "make_trials",
    "networks",
    "open_simulations",
    "plots",
    "python_simulator",
    "samplers",
    "save",
    "simulate",
    "simulate_to_store",
    "simulators",
    "train",
    "train_online",
    "with_missing",
]

_MODULES = (
    "abc",
    "densities",
    "diagnostics",
    "losses",
    "networks",
    "plots",
    "samplers",
    "simulators",
)
_HOMES = {
    "base": (
        "AbcInfo ChainInfo Density DiffusionEstimator Estimator LazySimulations "
        "LikelihoodEstimator Network Params Prior RatioEstimator Sampler SbijaxWarning "
        "Simulations SolverInfo Standardizer Stats Target Trials"
    ),
    "data": "make_simulations make_trials",
    "estimators": "ensemble iid make_fmpe make_nle make_npe make_npse make_nre "
    "make_rejection_abc make_smc_abc with_missing",
    "inference": "Posterior infer",
    "io": "load save",
    "learned": "LearnedLikelihood learned_factor",
    "online": "train_online",
    "priors": "make_prior",
    "simulators.python": "PythonSimulator python_simulator",
    "simulators.simulate": "simulate simulate_to_store",
    "simulators.store": "StoredSimulations open_simulations",
    "training": "TrainConfig TrainInfo fit train",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sbijax.{name}")
    if name in _HOME_OF:
        module = importlib.import_module(f"sbijax.{_HOME_OF[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'sbijax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
