"""Losses that know of time steps; the others are PyTorch's and timm's."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def tet_loss(
    logits: Tensor,
    target: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    weight: float = 0.001,
    level: float = 1.0,
) -> Tensor:
    """Temporal efficient training: every time step is to be right by itself.

    ``(1 - weight) * mean_t criterion(logits[t], target) + weight * mean (logits - level)^2``

    Args:
        logits: [T, B, classes], as ``model(x, per_step=True)`` gives them.
        target: what ``criterion`` takes with [B, classes].
        weight: lambda, the share of the regularisation.
        level: what the logits are drawn to.

    Source: Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient
    Re-weighting", ICLR 2022; constants of Spike-driven Transformer's release.
    """
    loss = sum(criterion(step, target) for step in logits) / len(logits)
    return (1 - weight) * loss + weight * (logits - level).square().mean()
