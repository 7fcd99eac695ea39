"""A model with what makes it learn: optimizer, precision, averaged weights, other processes."""

import copy
import inspect
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qkformer.checkpoint.io import CheckpointError
from qkformer.training.config import Config, ConfigError
from qkformer.training.distributed import World
from qkformer.training.environment import autocast, scales
from qkformer.training.graph import CaptureError, GraphedStep, Parts, Results, aside, obstacle
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
        graph: What takes steps as a CUDA graph; None where they are taken as they are written.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        device: torch.device,
        world: World,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config, self.device, self.say = config.optimizer, device, world.say
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
        self.scaler = self._new_scaler()
        decay = config.optimizer.ema_decay
        self.ema = ModelEmaV3(self.model, decay=decay) if decay else None
        if config.compute.compile:
            self.model.compile()
        self.must_graph = config.compute.cuda_graph is True
        self.graph: GraphedStep | None = None
        if obstacle(config, device, world.size) is None:
            self.graph = GraphedStep(self._step, device, world.size)
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
        self.network: nn.Module = self.model
        if world.size > 1:
            make = partial(exchanging_gradients, self.model, device)
            self.network = make() if self.graph is None else aside(make, device)

    def _new_scaler(self) -> torch.amp.GradScaler:
        enabled = scales(self.precision, self.device)
        return torch.amp.GradScaler(self.device.type, enabled=enabled)

    def step(self, parts: Parts, rate: float) -> Results:
        """Learn from the batches of one step.

        Args:
            parts: For each of the `accumulation_steps` batches, the input of the model, and the
                targets: class indices [B], or probabilities [B, classes].
            rate: Learning rate.

        Returns:
            Loss (mean over the batch) and logits [B, classes] of each, detached; and the 2-norm of
            the gradient before clipping, which is not finite where the scaler leaves out the step.

        Raises:
            ConfigError: it cannot be recorded as a CUDA graph, as it must.
        """
        for group in self.optimizer.param_groups:
            own = rate * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], Tensor):  # where the graph reads it
                group["lr"].fill_(own)
            else:
                group["lr"] = own
        if self.graph is not None:
            try:
                return self.graph(parts)
            except CaptureError as error:
                self._give_up_graph(error)
        return self._step(parts)

    def _step(self, parts: Parts) -> Results:
        results = []
        for number, (samples, targets) in enumerate(parts, 1):
            results.append(self.backward(samples, targets, exchange=number == len(parts)))
        return results, self.update()

    def backward(
        self, samples: Tensor, targets: Tensor, *, exchange: bool
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of one of the batches of a step; arguments and results as of `step`.

        Args:
            exchange: Average the gradients added so far over all processes; on the last of the
                batches of a step.
        """
        inner = isinstance(self.network, DistributedDataParallel) and not exchange
        with self.network.no_sync() if inner else nullcontext():
            with autocast(self.precision, self.device):
                output = self.network(samples, **self.objective.options)
                taught = self.objective.taught(samples)
            loss, logits = self.objective(output, targets, taught)
            self.scaler.scale(loss / self.config.accumulation_steps).backward()
        return loss.detach(), logits.detach()

    def update(self) -> Tensor:
        """Take a step of the optimizer; the 2-norm of the gradient before clipping."""
        if self.graph is not None:
            self._set_capturable(torch.cuda.is_current_stream_capturing())
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

    def _set_capturable(self, value: bool) -> None:
        """Adam refuses to be recorded untold, and warns if told and not; its step is the same."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = value

    def _give_up_graph(self, error: CaptureError) -> None:
        """From here on as written. What was recorded has not happened, but some took note of it."""
        if self.must_graph:
            raise ConfigError(
                f"compute.cuda_graph: true, but a step cannot be recorded ({error}); auto and "
                "false train without"
            ) from error
        self.say(f"compute.cuda_graph: auto, without a graph: a step cannot be recorded ({error})")
        self.graph = None
        self.optimizer.zero_grad(set_to_none=True)
        self._set_capturable(False)
        scaler, self.scaler = self.scaler, self._new_scaler()
        self.scaler.load_state_dict(scaler.state_dict())

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
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:  # a number for any device
            group["lr"] = float(group["lr"])
        return self.weights() | {"optimizer": optimizer, "scaler": self.scaler.state_dict()}

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
            if self.graph is not None:
                self.graph.forget()
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
