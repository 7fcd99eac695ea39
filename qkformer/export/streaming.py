"""A model that takes one time step per call, with its membranes as inputs and outputs."""

import copy

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn

from qkformer.models import SpikingNetwork
from qkformer.neurons import SFA
from qkformer.peers.stsa import SpatialTemporalAttention


def streaming(model: SpikingNetwork) -> "Streaming":
    """A copy of the model that takes one time step per call.

    After t calls on the frames of a recording its logits are ``model(frames)`` of those t frames,
    bit for bit but for the order in which PyTorch adds more than 16 time steps. An image that is
    shown T times is a recording like any other::

        stream = qkformer.streaming(model)
        states = stream.start(frame)  # frame [B, C, H, W]: its values do not matter
        for frame in frames.unbind(1):
            logits, *states = stream(frame, *states)

    Args:
        model: one of this package's models in evaluation mode, or what ``fuse_for_inference`` makes
            of it. It stays as it is.

    Raises:
        TypeError: it is no model of this package.
        ValueError: it is in training mode, or mixes time steps in another way than by membranes.
    """
    if not isinstance(model, SpikingNetwork):
        raise TypeError(f"streaming expects a model of qkformer, got {type(model).__name__}")
    if reason := _unfit(model):
        raise ValueError(f"{type(model).__name__} cannot be streamed: {reason}")
    return Streaming(copy.deepcopy(model)).eval()


def _unfit(model: SpikingNetwork) -> str | None:
    if model.training:
        return "it is in training mode: call model.eval() first"
    if not model.global_pool:
        return "without pooling it has no logits to average: build it with global_pool='avg'"
    for name, module in model.named_modules():
        if "original" in (getattr(module, "ssa", None), getattr(module, "stsa", None)):
            return f"{name or 'its attention'} is 'original', which lets samples see each other"
        if isinstance(module, SpatialTemporalAttention):
            return f"{name} attends to all time steps before"
        if isinstance(module, SFA) and module.unrolled:
            return f"{name} takes the mean over all time steps first; stream what was not converted"
    if not any(isinstance(module, base.MemoryModule) for module in model.modules()):
        return "no neuron of it has a membrane; call it on each frame"
    return None


class Streaming(nn.Module):
    """What :func:`streaming` makes.

    A sample's rows of the states belong to it alone: set them to those of :meth:`start`, and a new
    recording begins there, whatever the other samples of the batch are at.

    Attributes:
        names: of the states, in their order: path of a neuron and ``v``, its membrane potential;
            at the end the sum of the features so far, and the number of time steps.

    Shape: frame [B, C, H, W] and states [B, ...] each -> logits [B, num_classes] of all time steps
        so far, and the states for the next call.

    Raises:
        ValueError: another number of states; an input of another shape.
    """

    def __init__(self, model: SpikingNetwork):
        super().__init__()
        self.model = model
        model.over_time = RunningMean()
        functional.set_step_mode(model, "s")
        functional.reset_net(model)
        self.names = [name for name, _ in base.named_memories(model)]

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if len(states) != len(self.names):
            raise ValueError(
                f"expected {len(self.names)} states, as start(frame) gives them, got {len(states)}"
            )
        base.load_memories(self.model, [state.unsqueeze(0) for state in states])
        return self._step(frame)

    @torch.no_grad()
    def start(self, frame: Tensor) -> tuple[Tensor, ...]:
        """The states in front of the first time step of recordings like ``frame`` [B, C, H, W]."""
        _, *states = self._step(torch.zeros_like(frame))
        values = [
            module.get_reset_value(name)
            for module in self.model.modules()
            if isinstance(module, base.MemoryModule)
            for name, _ in module.named_memories()
        ]
        return tuple(map(torch.full_like, states, values))

    def _step(self, frame: Tensor) -> tuple[Tensor, ...]:
        try:
            logits = self.model(frame.unsqueeze(1))
            return logits, *(state.squeeze(0) for state in base.extract_memories(self.model))
        finally:
            functional.reset_net(self.model)


class RunningMean(base.MemoryModule):
    """The mean over the time steps so far: [1, B, ...] -> [B, ...]; in single-step mode only."""

    def __init__(self):
        super().__init__()
        self.register_memory("total", 0.0)
        self.register_memory("steps", 0.0)

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.total = x + self.total
        self.steps = x.new_ones(x.shape[:2]) + self.steps
        return (self.total / self.steps.view(*x.shape[:2], *[1] * (x.ndim - 2))).squeeze(0)
