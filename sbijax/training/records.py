"""Records of a training run: what shapes it, what it carries, what it reports."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from sbijax.base import Array, Prior, PyTree, Simulations
from sbijax.training.flat import Flat

__all__ = ["Source", "TrainConfig", "TrainInfo", "TrainState", "is_done"]


class TrainConfig(NamedTuple):
    """What shapes the compiled program; numbers people sweep are not in here.

    `batch_size` None stands for N / 100 within 50 and 500: small data learn
    best from noisy steps.  `optimizer` replaces the default (clipping, Adam,
    decoupled weight decay) together with its learning rate; `patience` epochs
    without a better validation loss (None: see `train`) lower the weight decay, then
    the learning rate as well, and after `num_decays` of them training stops.  With a
    `source` the batches are fresh simulations, and the data at hand serve for
    validation.
    """

    batch_size: int | None = None
    max_epochs: int = 1000
    validation_fraction: float = 0.1
    patience: int | None = None
    num_decays: int = 3
    optimizer: optax.GradientTransformation | None = None
    source: "Source | None" = None


class Source(NamedTuple):
    """Where fresh batches come from: `draw(key, prior, simulator, num_rows)`."""

    draw: Callable[..., Simulations]
    prior: Prior
    simulator: Callable[[Array, PyTree], PyTree]
    steps_per_epoch: int

    def simulate(self, key: Array, num_rows: int) -> Simulations:
        """A batch of new simulations."""
        return self.draw(key, self.prior, self.simulator, num_rows)


class TrainState(NamedTuple):
    """All that the next epoch needs; saving it is saving the run."""

    key: Array
    stats: PyTree
    net: Flat
    average: Flat
    opt_state: PyTree
    rows: Array
    num_train: Array
    num_valid: Array
    mean_weight: Array
    learning_rate: Array
    weight_decay: Array
    num_decays: Array
    epoch: Array
    step: Array
    stalled: Array
    best_net: Flat
    best_loss: Array
    best_epoch: Array
    num_skipped: Array
    train_loss: Array
    val_loss: Array


class TrainInfo(NamedTuple):
    """What training reports, as arrays.

    `train_loss` and `val_loss` are `[max_epochs]`, NaN after `num_epochs`;
    `best_epoch` counts from 0; `converged` tells whether the validation loss
    had stopped falling; `num_skipped` counts steps with non-finite gradients.
    """

    train_loss: Array
    val_loss: Array
    num_epochs: Array
    best_epoch: Array
    best_loss: Array
    converged: Array
    num_skipped: Array


def is_done(state: TrainState, config: TrainConfig) -> Array:
    """Whether early stopping has ended the run."""
    return state.num_decays > config.num_decays
