"""Settings of a run, checked."""

import math

import numpy as np
import optax

from sbijax.base import Array
from sbijax.checks import check_count
from sbijax.training.records import TrainConfig

__all__ = ["check_rates", "make_config"]


def make_config(
    batch_size: int | None,
    max_epochs: int,
    validation_fraction: float,
    patience: int | None,
    num_decays: int,
    optimizer: optax.GradientTransformation | None,
) -> TrainConfig:
    """Checked settings as plain Python numbers."""
    if not 0.0 <= float(validation_fraction) < 1.0:
        raise ValueError(
            f"validation_fraction must be in [0, 1), got {validation_fraction}."
        )
    if optimizer is not None and not callable(getattr(optimizer, "update", None)):
        raise TypeError(f"optimizer must be an optax optimizer, got {optimizer!r}.")
    return TrainConfig(
        batch_size=None
        if batch_size is None
        else check_count(batch_size, "batch_size"),
        max_epochs=check_count(max_epochs, "max_epochs"),
        validation_fraction=float(validation_fraction),
        patience=None if patience is None else check_count(patience, "patience"),
        num_decays=check_count(num_decays, "num_decays", least=0),
        optimizer=optimizer,
    )


def check_rates(learning_rate: float | Array, weight_decay: float | Array) -> None:
    """Raise unless both are one number in their range."""
    for name, rate in {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
    }.items():
        if np.ndim(rate) or not np.issubdtype(np.asarray(rate).dtype, np.number):
            raise TypeError(f"{name} must be one number, got {rate!r}.")
    if not 0.0 < float(learning_rate) < math.inf:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    if not 0.0 <= float(weight_decay) < math.inf:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")
