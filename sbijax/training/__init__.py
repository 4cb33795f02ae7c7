"""Training: one compiled program, and a wrapper for people."""

from sbijax.training.fit import Source, TrainConfig, TrainInfo, fit
from sbijax.training.train import make_config, run_training, train

__all__ = [
    "Source",
    "TrainConfig",
    "TrainInfo",
    "fit",
    "make_config",
    "run_training",
    "train",
]
