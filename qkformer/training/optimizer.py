"""AdamW over a model's parameters."""

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW

from qkformer.training.config import OptimizerConfig


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW that decays weights of two or more dimensions, but for the model's exceptions."""
    exceptions = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exceptions)
    # one kernel for all parameters where it exists on the GPU
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True if on_gpu else None)
