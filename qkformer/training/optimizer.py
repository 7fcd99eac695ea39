"""Optimizers: timm's, by their names."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import Optimizer

from qkformer.text import did_you_mean, one_line


@dataclass
class OptimizerConfig:
    """The optimizer and the steps it takes.

    Args:
        name: As timm spells it: adamw, adam, lamb, sgd (with Nesterov's momentum), momentum (SGD
            without), ...
        lr: Peak learning rate.
        lr_per_batch: Number of samples per step to which `lr` belongs: it is scaled linearly to the
            run's own (batch size x processes x accumulation steps); null takes `lr` as it is.
        layer_decay: Every layer's learning rate in units of that of the layer behind it; null for
            one rate.
        weight_decay: On weights only: not on biases, BatchNorm, learned time constants. Decoupled,
            or added to the gradient, as the optimizer does it.
        betas: Decay of the running means of the gradient and of its square; null for the
            optimizer's own.
        args: Any other argument of the optimizer, as in {momentum: 0.9} or {trust_clip: true}.
        accumulation_steps: Batches of every process whose gradients make one step.
        clip_grad_norm: Largest 2-norm of the whole gradient, to which it is scaled down; or null.
            timm's lamb does so at 1 by itself.
        ema_decay: Decay per step of a running mean of the weights, which is tested and saved beside
            them; null for none.
    """

    lr: float
    name: str = "adamw"
    lr_per_batch: int | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    accumulation_steps: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: must be above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: must be 0 or more, got {self.weight_decay}")
        for key in ("lr_per_batch", "accumulation_steps"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < math.inf:
            raise ValueError(f"clip_grad_norm: must be above 0, got {self.clip_grad_norm}")
        for key in ("ema_decay", "layer_decay"):
            if getattr(self, key) is not None and not 0 < getattr(self, key) < 1:
                raise ValueError(f"{key}: must be in 0 < decay < 1, got {getattr(self, key)}")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        # one of second order takes another kind of step
        names = [n for n in list_optimizers() if not get_optimizer_info(n).second_order]
        if self.name not in names:
            raise ValueError(f"name: no optimizer {self.name!r}{did_you_mean(self.name, names)}")
        info = get_optimizer_info(self.name)
        if self.betas is not None:
            if not info.has_betas:
                raise ValueError(f"betas: {self.name} has none, leave them null")
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ValueError(f"betas: must both be in 0 <= beta < 1, got {list(self.betas)}")
        known = inspect.signature(info.opt_class).parameters.keys() - {"params"}
        own = known & self.__dataclass_fields__.keys()
        for key in self.args:
            if key in own:
                raise ValueError(f"args.{key}: has a key of its own, optimizer.{key}")
            if key not in known:
                raise ValueError(f"args.{key}: {self.name} takes none{did_you_mean(key, known)}")
        try:
            self.create([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"args: {one_line(error)}") from error

    def create(self, parameters: list[Any], **options: Any) -> Optimizer:
        """The optimizer of these parameters, or groups of parameters."""
        betas = {} if self.betas is None else {"betas": self.betas}
        return create_optimizer_v2(
            parameters, self.name, lr=self.lr, **betas, **options, **self.args
        )

    def peak_lr(self, samples_per_step: int) -> float:
        """Peak learning rate of a run that takes so many samples, of all processes, per step."""
        if self.lr_per_batch is None:
            return self.lr
        return self.lr * samples_per_step / self.lr_per_batch


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Weights of two or more dimensions decay, but for the model's exceptions.

    With `layer_decay`, groups of parameters have an `lr_scale`, the factor of their layer.
    """
    groups_of, factor = param_groups_weight_decay, {}
    if config.layer_decay is not None:
        groups_of, factor = param_groups_layer_decay, {"layer_decay": config.layer_decay}
    exceptions = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = groups_of(model, config.weight_decay, no_weight_decay_list=exceptions, **factor)
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    chosen = "fused" in config.args
    options = {"fused": True} if on_gpu and is_fused(config) and not chosen else {}
    return config.create(groups, **options)


def is_fused(config: OptimizerConfig) -> bool:
    """Whether a step on a GPU is one kernel for all parameters: where there is such a kernel."""
    takes = inspect.signature(get_optimizer_info(config.name).opt_class).parameters
    return "fused" in takes and bool(config.args.get("fused", True))
