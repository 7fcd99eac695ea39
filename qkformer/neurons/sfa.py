"""Spike firing approximation: integers in training, binary steps at inference; no membrane."""

from typing import Literal

import torch
from torch import Tensor, nn

from qkformer.neurons.reference import exporting


class SFA(nn.Module):
    """``round(clamp(x, 0, levels)) / levels``, and its unrolling into ``levels`` binary steps.

    An integer n that a linear layer multiplies is n spikes that it adds. So a trained network with
    ``unrolled = True`` on ``levels`` steps of the same image (T = ``levels``) computes the same:
    each neuron takes the mean of its current over the steps, fires in the first n of them, and the
    mean of its spikes is n / levels.

    Args:
        levels: the largest integer.
        rounding: of halves: to the "even" neighbour, or "up"; gradients pass for currents in
            [0, levels], or between the two only.
        divide: by ``levels``; if not, outputs are 0 ... ``levels``.

    Shape: [T, ...] -> the same; T is ``levels`` if unrolled.

    Source: E-SpikeFormer (arXiv 2411.16061); "up" is that of its large models.
    """

    def __init__(
        self, levels: int = 4, rounding: Literal["even", "up"] = "even", divide: bool = True
    ):
        super().__init__()
        if rounding not in ("even", "up"):
            raise ValueError(f"rounding must be 'even' or 'up', got {rounding!r}")
        if not isinstance(levels, int) or levels < 1:
            raise ValueError(f"levels must be an integer of at least 1, got {levels!r}")
        self.levels, self.rounding, self.divide = levels, rounding, divide
        self.unrolled = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.unrolled:
            n = self._integers(x)
            return n / self.levels if self.divide else n
        if len(x) != self.levels:
            raise ValueError(f"unrolled into {self.levels} steps, got {len(x)}: set the model's T")
        n = self._integers(x.mean(0))
        spikes = torch.stack([(n > step).to(x.dtype) for step in range(self.levels)])
        return spikes if self.divide else spikes * self.levels

    @property
    def spike_height(self) -> float:
        """What one spike adds to the output."""
        height = 1 / self.levels if self.divide else 1.0
        return height * self.levels if self.unrolled else height

    def _integers(self, x: Tensor) -> Tensor:
        return (_rounded if exporting() else _Integers.apply)(x, self.levels, self.rounding)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, rounding={self.rounding}, divide={self.divide}"


def _rounded(x: Tensor, levels: int, rounding: str) -> Tensor:
    x = x.clamp(0, levels)
    return x.round() if rounding == "even" else (x + 0.5).floor()


class _Integers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, levels: int, rounding: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.levels, ctx.rounding = levels, rounding
        return _rounded(x, levels, rounding)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.rounding == "even":
            inside = (x >= 0) & (x <= ctx.levels)
        else:
            inside = (x > 0) & (x < ctx.levels)
        return grad * inside, None, None
