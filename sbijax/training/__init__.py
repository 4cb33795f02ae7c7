"""Training: one compiled program, and a wrapper for people."""

from sbijax.training.fit import TrainConfig, TrainInfo, fit
from sbijax.training.train import train

__all__ = ["TrainConfig", "TrainInfo", "fit", "train"]
