"""Training: one compiled program, and a wrapper for people."""

from sbijax.training.fit import fit
from sbijax.training.records import Source, TrainConfig, TrainInfo
from sbijax.training.settings import make_config
from sbijax.training.train import run_training, train

__all__ = [
    "Source",
    "TrainConfig",
    "TrainInfo",
    "fit",
    "make_config",
    "run_training",
    "train",
]
