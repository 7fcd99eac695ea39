"""AdamW over a model's parameters."""

import math
from dataclasses import dataclass

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW


@dataclass
class OptimizerConfig:
    """AdamW.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled, on weights only: not on biases, BatchNorm, learned time constants.
        betas: Decay of the running means of the gradient and of its square.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: must be above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: must both be in 0 <= beta < 1, got {list(self.betas)}")


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW that decays weights of two or more dimensions, but for the model's exceptions."""
    exceptions = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exceptions)
    return AdamW(groups, lr=config.lr, betas=config.betas)
