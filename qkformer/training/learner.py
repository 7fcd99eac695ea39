"""A model with what makes it learn: optimizer, precision, averaged weights, other processes."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qkformer.checkpoint.io import CheckpointError
from qkformer.training.config import ComputeConfig, Config, ConfigError
from qkformer.training.distributed import World
from qkformer.training.optimizer import create_optimizer

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """Forward, backward and update of one step, on one of the processes that train together.

    Args:
        model: The bare model.
        config: Its `loss`, `optimizer` and `compute` sections act here.
        device: Where to compute.
        world: The processes.

    Attributes:
        model: The bare model on the device, whose state dict has no wrapper's prefixes.
        network: What to call: the model, compiled and exchanging gradients as configured.
        ema: Running mean of the weights, or None.
    """

    def __init__(
        self, model: nn.Module, config: Config, device: torch.device, world: World
    ) -> None:
        self.config, self.device = config.optimizer, device
        self.model = prepare_model(model, config.compute, device)
        if config.compute.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if config.compute.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.optimizer = create_optimizer(self.model, config.optimizer)
        self.loss = nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)
        self.precision = config.compute.precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales(self.precision, device))
        decay = config.optimizer.ema_decay
        self.ema = ModelEmaV3(self.model, decay=decay) if decay else None
        if config.compute.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if world.size > 1:
            gpu = [device] if device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=gpu)

    def backward(
        self, samples: Tensor, targets: Tensor, *, exchange: bool
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of one of `accumulation_steps` batches.

        Args:
            samples: Input of the model.
            targets: Class indices [B], or probabilities [B, classes].
            exchange: Average the gradients added so far over all processes; on the last of the
                batches of a step.

        Returns:
            loss (mean over the batch), logits [B, classes], both without a graph.
        """
        inner = isinstance(self.network, DistributedDataParallel) and not exchange
        with self.network.no_sync() if inner else nullcontext():
            with autocast(self.precision, self.device):
                logits = self.network(samples)
            loss = self.loss(logits.float() if logits.dtype in DTYPES.values() else logits, targets)
            self.scaler.scale(loss / self.config.accumulation_steps).backward()
        return loss.detach(), logits.detach()

    def update(self, rate: float) -> Tensor:
        """Take a step of AdamW.

        Args:
            rate: Learning rate.

        Returns:
            2-norm of the gradient before clipping; not finite where the scaler leaves out the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        most = self.config.clip_grad_norm or math.inf
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if most < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)
        return norm

    def weights(self) -> dict[str, Any]:
        """What a model is loaded from: `model`, and `state_dict_ema` if there is a running mean."""
        averaged = {"state_dict_ema": self.ema.module.state_dict()} if self.ema else {}
        return {"model": self.model.state_dict()} | averaged

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: the weights, the optimizer's and the gradient scaler's state."""
        learning = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return self.weights() | learning

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, in place.

        Raises:
            CheckpointError: it is of another architecture.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty where the run so far needed none
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:  # a run that begins to average begins with its own weights
                self.ema.module.load_state_dict(state.get("state_dict_ema", state["model"]))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError("does not fit the configured model") from error


def prepare_model(model: nn.Module, compute: ComputeConfig, device: torch.device) -> nn.Module:
    """Put a model where and how it is computed with."""
    layout = torch.channels_last if compute.channels_last else torch.preserve_format
    return model.to(device, memory_format=layout)


def check_compute(compute: ComputeConfig, device: torch.device) -> None:
    """Refuse what this device cannot do.

    Raises:
        ConfigError: bfloat16 on a GPU without it, SyncBatchNorm on the CPU.
    """
    if compute.sync_batchnorm and device.type != "cuda":
        raise ConfigError("compute.sync_batchnorm: PyTorch has it for GPUs only")
    if compute.precision == "bf16" and device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major < 8:
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"compute.precision: {name} has no bfloat16; take fp16")


def computed(precision: str, device: torch.device) -> str:
    """The precision that takes the place of the configured one: fp16 is for GPUs."""
    return "fp32" if precision == "fp16" and device.type != "cuda" else precision


def precision_remarks(precision: str, device: torch.device) -> list[str]:
    """A line where another precision takes the place of the configured one."""
    if computed(precision, device) == precision:
        return []
    return ["compute.precision: fp16 is for GPUs, on the CPU float32 takes its place"]


def scales(precision: str, device: torch.device) -> bool:
    """Whether gradients need a scaler: float16 has few exponents."""
    return computed(precision, device) == "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of forward passes."""
    precision = computed(precision, device)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
