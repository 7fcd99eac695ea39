"""A model with what makes it learn: optimizer, precision, averaged weights, other processes."""

import copy
import inspect
import math
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qkformer.checkpoint.io import CheckpointError
from qkformer.training.config import Config
from qkformer.training.distributed import World
from qkformer.training.environment import autocast, scales
from qkformer.training.model import prepare_model
from qkformer.training.objective import Objective
from qkformer.training.optimizer import create_optimizer


class Learner:
    """Forward, backward and update of one step, on one of the processes that train together.

    Args:
        model: The bare model; every process gets the main one's weights.
        config: Its `loss`, `optimizer` and `compute` sections act here.
        device: Where to compute.
        world: The processes.
        teacher: The model that `loss` names, if it names one.

    Attributes:
        model: The bare model on the device, whose state dict has no wrapper's prefixes.
        network: What to call: the model, compiled and exchanging gradients as configured.
        ema: Running mean of the weights, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        device: torch.device,
        world: World,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config, self.device = config.optimizer, device
        self.model = prepare_model(model, config.compute, device)
        if config.compute.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if config.compute.grad_checkpointing:
            self.model.set_grad_checkpointing()
        # DistributedDataParallel would do it too, but behind the copy that averages
        world.share(*self.model.parameters(), *self.model.buffers())
        self.optimizer = create_optimizer(self.model, config.optimizer)
        if teacher is not None:
            teacher = prepare_model(teacher, config.compute, device)
            self.model.set_distilled_training()
        self.objective = Objective(config.loss, teacher)
        self.precision = config.compute.precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales(self.precision, device))
        decay = config.optimizer.ema_decay
        self.ema = ModelEmaV3(self.model, decay=decay) if decay else None
        if config.compute.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if world.size > 1:
            self.network = exchanging_gradients(self.model, device)

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
                output = self.network(samples, **self.objective.options)
                taught = self.objective.taught(samples)
            loss, logits = self.objective(output, targets, taught)
            self.scaler.scale(loss / self.config.accumulation_steps).backward()
        return loss.detach(), logits.detach()

    def update(self, rate: float) -> Tensor:
        """Take a step of the optimizer.

        Args:
            rate: Learning rate.

        Returns:
            2-norm of the gradient before clipping; not finite where the scaler leaves out the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
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

    def tested_models(self, world: World) -> dict[str, nn.Module]:
        """What is tested after an epoch, equal in all processes: "" the model, "ema_" the mean."""
        models = {"": self.model} | ({"ema_": self.ema.module} if self.ema else {})
        for model in models.values():
            world.share_buffers(model)  # each process's statistics are of its own last batch
        return models

    def weights(self) -> dict[str, Any]:
        """What a model is loaded from: `model`, and `state_dict_ema` if there is a running mean."""
        averaged = {"state_dict_ema": self.ema.module.state_dict()} if self.ema else {}
        return {"model": self.model.state_dict()} | averaged

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: the weights, the optimizer's and the gradient scaler's state."""
        learning = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return self.weights() | learning

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, in place. What is configured stays as configured.

        Raises:
            CheckpointError: it is of another architecture.
        """
        try:
            self.model.load_state_dict(state["model"])
            self._load_optimizer(state["optimizer"])
            if state["scaler"]:  # empty where the run so far needed none
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:  # a run that begins to average begins with its own weights
                self.ema.module.load_state_dict(state.get("state_dict_ema", state["model"]))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError("does not fit the configured model") from error

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """The moments, but not the hyperparameters: these are the configuration's.

        Nor what PyTorch keeps beside these: a run on the CPU that goes on on a GPU becomes fused.
        What a group has that it begins without, as LAMB's number of steps, is no hyperparameter.
        """
        own = self.optimizer.state_dict()["param_groups"]
        both = own, saved["param_groups"]
        sizes, found = ([len(group["params"]) for group in groups] for groups in both)
        if sizes != found:
            raise ValueError(f"groups of {found} parameters, the model has {sizes}")
        # copies: what was read may be a view of the file
        state = copy.deepcopy(saved["state"])
        groups = [copy.deepcopy(theirs) | ours for ours, theirs in zip(*both, strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def exchanging_gradients(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model, whose processes average their gradients.

    Not their running statistics: nothing reads these before a test, which shares them first.
    """
    takes = inspect.signature(DistributedDataParallel).parameters
    # renamed by PyTorch 2.13
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in takes else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{buffers: False},
    )
