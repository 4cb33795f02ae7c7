"""What is said about simulations and finished runs, in one readable line each."""

import math
import warnings

import numpy as np

from sbijax.base import SbijaxWarning, Simulations, Stats
from sbijax.training.records import TrainConfig, TrainInfo, TrainState

__all__ = ["report_outside", "report_run", "report_weights"]


def report_weights(sims: Simulations, num_rows: int) -> None:
    """Refuse simulations without weight, warn of many; of `num_rows`, or a sample."""
    size, num_zero = sims.weight.shape[0], int(np.sum(np.asarray(sims.weight) == 0))
    sample = f", a sample of {num_rows:,}," if num_rows > size else ""
    if num_zero == size:
        raise ValueError(
            f"all {size} simulations{sample} have weight 0: every one failed or holds "
            "non-finite values, so there is nothing to learn from."
        )
    if num_zero > 0.1 * size:
        warnings.warn(
            f"{num_zero:,} of {size:,} simulations{sample} have weight 0 and are left "
            "out; what is learned is the posterior given that the simulator succeeds.",
            SbijaxWarning,
            stacklevel=4,
        )


def report_outside(state: TrainState, num_valid: int) -> None:
    """Refuse simulations outside the prior, warn of many, among those with weight."""
    if not isinstance(state.stats, Stats):
        return
    num_outside = int(state.stats.num_outside)
    message = (
        f"theta lies outside the prior's support (or a discrete x outside its "
        f"num_categories) in {num_outside:,} of {num_valid:,} simulations; check that "
        "they were drawn from this prior, and the order and the units of the "
        "parameters."
    )
    if num_outside == num_valid:
        raise ValueError(message)
    if num_outside > 0.05 * num_valid:  # a few draws may underflow to the bound
        warnings.warn(message, SbijaxWarning, stacklevel=4)


def _still_falling(info: TrainInfo) -> bool:
    """Whether the last tenth of the epochs brought a hundredth of the progress."""
    if bool(info.converged):
        return False
    num_epochs = int(info.num_epochs)
    losses = np.minimum.accumulate(np.asarray(info.val_loss)[:num_epochs])
    recent = losses[num_epochs - 1 - math.ceil((num_epochs - 1) / 10)]
    return bool(recent - losses[-1] >= 0.01 * (losses[0] - losses[-1]))


def report_run(info: TrainInfo, config: TrainConfig) -> None:
    """Say in one line each what may be wrong with a finished run."""
    num_epochs, best = int(info.num_epochs), int(info.best_epoch)
    train_loss, val_loss = np.asarray(info.train_loss), np.asarray(info.val_loss)
    messages = []
    if not np.isfinite(float(info.best_loss)):
        messages.append(
            "the loss was never finite; look for extreme values in the simulations "
            "or lower learning_rate. If entries of x are missing, the estimator needs "
            "standardizer=networks.missing(networks.robust())."
        )
    elif num_epochs == config.max_epochs and _still_falling(info):
        messages.append(
            f"training used all {config.max_epochs} epochs and the validation loss "
            "was still falling; raise max_epochs."
        )
    elif num_epochs > 1 and float(info.best_loss) >= val_loss[0]:
        messages.append(
            "training stopped on a plateau: the validation loss never improved on "
            f"the first epoch ({val_loss[0]:.3f}). The start may be as good as it "
            "gets, as where a linear or logistic regression is exact; else try another "
            "learning_rate, or check that x carries information on theta."
        )
    gap = float(val_loss[best] - train_loss[best])
    drop = float(val_loss[0]) - float(info.best_loss)
    if best > 0 and drop > 0 and gap > max(drop, 1.0):
        messages.append(
            f"the network overfits: at the best epoch the validation loss is {gap:.2f} "
            "above the training loss; more simulations, a smaller network or an "
            "ensemble would help."
        )
    if int(info.num_skipped):
        messages.append(
            f"{int(info.num_skipped)} steps had non-finite gradients and were "
            "skipped; lower learning_rate if there are many."
        )
    for message in messages:
        warnings.warn(message, SbijaxWarning, stacklevel=5)
