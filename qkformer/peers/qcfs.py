"""QCFS (ICLR 2022): an activation that integrate-and-fire neurons can stand for."""

from typing import Any

import torch
from torch import Tensor, nn

from qkformer.neurons import IF
from qkformer.neurons.reference import exporting


class QCFS(nn.Module):
    """Quantised, clipped, shifted: ``theta * clamp(round(levels * x / theta) / levels, 0, 1)``.

    Halves are rounded up, and rounding passes gradients straight through.

    Args:
        levels: L; the output is a multiple of theta / L.
        start: of the learned theta.
        clamp_first: gradients pass within [0, theta]; if False, half a level outside of it too
            (Masked Spiking Transformer).

    Shape: any.
    """

    def __init__(self, levels: int = 8, start: float = 8.0, clamp_first: bool = True):
        super().__init__()
        if not isinstance(levels, int) or levels < 1:
            raise ValueError(f"levels must be an integer of at least 1, got {levels!r}")
        self.levels, self.clamp_first = levels, clamp_first
        self.theta = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        x, floor = x / self.theta, torch.floor if exporting() else _Floor.apply
        if self.clamp_first:
            return self.theta * (floor(self.levels * x.clamp(0, 1) + 0.5) / self.levels)
        return self.theta * (floor(self.levels * x + 0.5) / self.levels).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, clamp_first={self.clamp_first}"


def qcfs(levels: int = 8, start: float = 8.0, **_of_spiking_neurons: Any) -> QCFS:
    """What makes the activation where a neuron is asked for."""
    return QCFS(levels, start)


class _Floor(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(_ctx, grad: Tensor) -> Tensor:
        return grad


class Firing(nn.Module):
    """What a :class:`QCFS` becomes: spikes of height theta, on average its output.

    The neuron integrates without leak from theta / 2, fires at theta, and a spike takes theta away.
    """

    def __init__(self, activation: QCFS):
        super().__init__()
        self.theta = activation.theta.item()
        self.neuron = IF(v_threshold=self.theta, v_init=self.theta / 2, soft_reset=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x) * self.theta
