"""Learning rates as pure functions of how far training has come."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass
class ScheduleConfig:
    """Learning rate over time, up to the peak that optimizer.lr gives.

    Args:
        name: one_cycle rises along half a cosine and falls along another, every step.
        warmup_epochs: Epochs until the peak, fractions allowed; a shorter training ends before.
        warmup_lr: Learning rate of the first step.
        min_lr: Learning rate towards which the last step falls.
    """

    name: Literal["one_cycle"]
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        for key in ("warmup_epochs", "warmup_lr", "min_lr"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")


def one_cycle(position: float, peak: float, epochs: int, config: ScheduleConfig) -> float:
    """Half a cosine up from `warmup_lr` to the peak, half a cosine down to `min_lr`.

    Args:
        position: Epochs behind us, 0 <= position <= epochs; 2.5 is in the middle of the third.
        peak: Highest learning rate.
        epochs: Length of the training.
        config: Warm-up and the rates at both ends.
    """
    if position < config.warmup_epochs:
        return _half_cosine(config.warmup_lr, peak, position / config.warmup_epochs)
    done = (position - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return _half_cosine(peak, config.min_lr, done)


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES = {"one_cycle": one_cycle}


def create_schedule(config: ScheduleConfig, peak: float, epochs: int) -> Callable[[float], float]:
    """Epochs behind us (a fraction inside an epoch) -> learning rate."""
    schedule = SCHEDULES[config.name]
    return lambda position: schedule(position, peak, epochs, config)
