"""AdamW over a model's parameters."""

import math
from dataclasses import dataclass

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW


@dataclass
class OptimizerConfig:
    """AdamW and the steps it takes.

    Args:
        lr: Peak learning rate.
        lr_per_batch: Number of samples per step to which `lr` belongs: it is scaled linearly to the
            run's own (batch size x processes x accumulation steps); null takes `lr` as it is.
        weight_decay: Decoupled, on weights only: not on biases, BatchNorm, learned time constants.
        betas: Decay of the running means of the gradient and of its square.
        accumulation_steps: Batches of every process whose gradients make one step.
        clip_grad_norm: Largest 2-norm of the whole gradient, to which it is scaled down; or null.
        ema_decay: Decay per step of a running mean of the weights, which is tested and saved beside
            them; null for none.
    """

    lr: float
    lr_per_batch: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: must be above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: must both be in 0 <= beta < 1, got {list(self.betas)}")
        for key in ("lr_per_batch", "accumulation_steps"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < math.inf:
            raise ValueError(f"clip_grad_norm: must be above 0, got {self.clip_grad_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: must be in 0 < decay < 1, got {self.ema_decay}")

    def peak_lr(self, samples_per_step: int) -> float:
        """Peak learning rate of a run that takes so many samples, of all processes, per step."""
        if self.lr_per_batch is None:
            return self.lr
        return self.lr * samples_per_step / self.lr_per_batch


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW that decays weights of two or more dimensions, but for the model's exceptions."""
    exceptions = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exceptions)
    # one kernel for all parameters where it exists on the GPU
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True if on_gpu else None)
