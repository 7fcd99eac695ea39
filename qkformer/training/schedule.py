"""Learning rates as pure functions of how far training has come."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass
class ScheduleConfig:
    """Learning rate over time, up to the peak that optimizer.lr gives.

    Args:
        name: cosine_per_step: a line up to the peak, then half a cosine down to min_lr over the
            epochs left, every step. cosine_per_epoch: the same, but constant within an epoch, and
            the cosine spans all epochs, warm-up included (timm's). one_cycle: half a cosine up,
            half a cosine down, every step.
        warmup_epochs: Epochs until the peak, fractions allowed; a shorter training ends before.
        warmup_lr: Learning rate of the first step.
        min_lr: Learning rate at the end.
        cooldown_epochs: Epochs at min_lr behind the last of `epochs`.
    """

    name: Literal["cosine_per_step", "cosine_per_epoch", "one_cycle"]
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    cooldown_epochs: int = 0

    def __post_init__(self) -> None:
        for key in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")


def cosine_per_step(position: float, peak: float, epochs: int, config: ScheduleConfig) -> float:
    """A line from `warmup_lr` to the peak, then half a cosine to `min_lr`: ImageNet's.

    Args:
        position: Epochs behind us, a fraction inside an epoch; 2.5 is in the middle of the third.
        peak: Highest learning rate.
        epochs: Length of the training without cool-down.
        config: Warm-up and the rates at both ends.
    """
    if position >= epochs:
        return config.min_lr
    if position < config.warmup_epochs:
        return config.warmup_lr + (peak - config.warmup_lr) * position / config.warmup_epochs
    done = (position - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return _half_cosine(peak, config.min_lr, done)


def cosine_per_epoch(position: float, peak: float, epochs: int, config: ScheduleConfig) -> float:
    """Constant within an epoch; the cosine's first part gives way to the warm-up: CIFAR's, DVS's.

    Arguments as for cosine_per_step.
    """
    epoch = math.floor(position)
    if epoch >= epochs:
        return config.min_lr
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (peak - config.warmup_lr) * epoch / config.warmup_epochs
    return _half_cosine(peak, config.min_lr, epoch / epochs)


def one_cycle(position: float, peak: float, epochs: int, config: ScheduleConfig) -> float:
    """Half a cosine up from `warmup_lr` to the peak, half a cosine down to `min_lr`.

    Arguments as for cosine_per_step.
    """
    if position >= epochs:
        return config.min_lr
    if position < config.warmup_epochs:
        return _half_cosine(config.warmup_lr, peak, position / config.warmup_epochs)
    done = (position - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return _half_cosine(peak, config.min_lr, done)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES = {
    "cosine_per_step": cosine_per_step,
    "cosine_per_epoch": cosine_per_epoch,
    "one_cycle": one_cycle,
}


def create_schedule(config: ScheduleConfig, peak: float, epochs: int) -> Callable[[float], float]:
    """Epochs behind us (a fraction inside an epoch) -> learning rate."""
    schedule = SCHEDULES[config.name]
    return lambda position: schedule(position, peak, epochs, config)
