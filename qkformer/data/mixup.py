"""Mixup: every sample of a batch becomes a mixture of itself and another."""

import numpy as np
from timm.data.mixup import mixup_target
from torch import Tensor

from qkformer.data.augmentation import AugmentationConfig


class Mixup:
    """Mixes sample b of a batch with sample B - 1 - b, labels as well.

    The share, one for the whole batch, comes from Beta(alpha, alpha) and, as in timm, from NumPy's
    global random numbers. Labels are not smoothed here: that is left to the loss, where it amounts
    to the same.

    Args:
        augmentation: `mixup_alpha`, `mixup_prob` and `mixup_off_epoch`.
        num_classes: Number of classes.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    """

    def __init__(self, augmentation: AugmentationConfig, num_classes: int) -> None:
        self.alpha, self.prob = augmentation.mixup_alpha, augmentation.mixup_prob
        self.off_epoch, self.num_classes = augmentation.mixup_off_epoch, num_classes

    def __call__(self, samples: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            samples: [B, ...]. Integers stay integers, rounded to even, as timm's collate function
                mixes images before they are normalised.
            labels: int64 [B], class indices.
            epoch: From `mixup_off_epoch` on, samples stay as they are.

        Returns:
            The samples, and the share of each class in each, float [B, classes]; `labels` where
            `mixup_alpha` is 0.
        """
        if not self.alpha:
            return samples, labels
        share = self._share(epoch)
        if share < 1:
            mixed = samples.float() * share + samples.flip(0).float() * (1 - share)
            samples = mixed if samples.is_floating_point() else mixed.round().to(samples.dtype)
        return samples, mixup_target(labels, self.num_classes, share)

    def _share(self, epoch: int) -> float:
        off = self.off_epoch and epoch >= self.off_epoch
        if off or np.random.rand() >= self.prob:
            return 1.0
        return float(np.random.beta(self.alpha, self.alpha))
