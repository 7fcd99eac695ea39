"""Losses that are not simply PyTorch's or timm's."""

from collections.abc import Callable

import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
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


class SmoothBinaryCrossEntropy(BinaryCrossEntropy):
    """timm's binary cross-entropy, which smooths mixtures of labels as well as single labels.

    As timm smooths both before they are mixed: an average of smoothed labels.

    Args:
        label_smoothing: share of a label that is spread over all classes.

    Shape: logits [B, classes], class indices [B] or probabilities [B, classes] -> mean.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__(label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.shape == logits.shape:
            targets = targets * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        return super().forward(logits, targets)
