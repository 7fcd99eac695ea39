"""Mixup: every sample of a batch becomes a mixture of itself and another."""

import timm.data
import torch
from timm.data.mixup import mixup_target
from torch import Tensor

from qkformer.data.augmentation import AugmentationConfig


class Mixup:
    """Mixes sample b of a batch with sample B - 1 - b, labels as well, by timm.

    The share, one for the whole batch, comes from Beta(alpha, alpha) and NumPy's global random
    numbers. Labels are not smoothed here: that is left to the loss, where it amounts to the same.

    Args:
        augmentation: `mixup_alpha`, above 0; `mixup_prob` and `mixup_off_epoch`.
        num_classes: Number of classes.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    """

    def __init__(self, augmentation: AugmentationConfig, num_classes: int) -> None:
        self.num_classes, self.off_epoch = num_classes, augmentation.mixup_off_epoch
        self.mix = timm.data.Mixup(
            mixup_alpha=augmentation.mixup_alpha,
            prob=augmentation.mixup_prob,
            label_smoothing=0.0,
            num_classes=num_classes,
        )

    def __call__(self, samples: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix a batch, in place.

        Args:
            samples: float [B, ...], images or frames. The last of an odd number (others of the
                batch could not be read) stays as it is.
            targets: int64 [B], class indices.
            epoch: From `mixup_off_epoch` on, samples stay as they are.

        Returns:
            `samples`, and the share of each class in each, float [B, classes].
        """
        if self.off_epoch and epoch >= self.off_epoch:
            return samples, mixup_target(targets, self.num_classes)
        even = len(samples) // 2 * 2  # timm takes no other batches
        _, mixed = self.mix(samples[:even], targets[:even])
        return samples, torch.cat([mixed, mixup_target(targets[even:], self.num_classes)])
