"""Mixup and CutMix: every sample of a batch becomes a mixture of itself and another."""

import numpy as np
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from torch import Tensor

from qkformer.data.augmentation import AugmentationConfig


class Mixup:
    """Mixes sample b of a batch with sample B - 1 - b, labels as well.

    The share, one for the whole batch, comes from Beta(alpha, alpha) and, as in timm, from NumPy's
    global random numbers. CutMix puts a rectangle of the other sample into this one; the share is
    then what is left of the area. Labels are not smoothed here: that is left to the loss, where it
    amounts to the same.

    Args:
        augmentation: `mixup_alpha`, `cutmix_alpha`, `switch_prob`, `mixup_prob` and
            `mixup_off_epoch`.
        num_classes: Number of classes.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018; Yun et al., CutMix,
    ICCV 2019.
    """

    def __init__(self, augmentation: AugmentationConfig, num_classes: int) -> None:
        self.mixup_alpha, self.cutmix_alpha = augmentation.mixup_alpha, augmentation.cutmix_alpha
        self.prob, self.switch_prob = augmentation.mixup_prob, augmentation.switch_prob
        self.off_epoch, self.num_classes = augmentation.mixup_off_epoch, num_classes

    def __call__(self, samples: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            samples: [B, ..., H, W]. Integers stay integers, rounded to even, as timm's collate
                function mixes images before they are normalised.
            labels: int64 [B], class indices.
            epoch: From `mixup_off_epoch` on, samples stay as they are.

        Returns:
            The samples, and the share of each class in each, float [B, classes]; `labels` where
            both alphas are 0.
        """
        if not self.mixup_alpha and not self.cutmix_alpha:
            return samples, labels
        share, cut = self._draw(epoch)
        if cut:
            (top, bottom, left, right), share = cutmix_bbox_and_lam(samples.shape, share)
            mixed = samples.clone()
            mixed[..., top:bottom, left:right] = samples.flip(0)[..., top:bottom, left:right]
            samples = mixed
        elif share < 1:
            mixed = samples.float() * share + samples.flip(0).float() * (1 - share)
            samples = mixed if samples.is_floating_point() else mixed.round().to(samples.dtype)
        return samples, mixup_target(labels, self.num_classes, share)

    def _draw(self, epoch: int) -> tuple[float, bool]:
        """The share of a sample itself, and whether the other's is a rectangle."""
        off = self.off_epoch and epoch >= self.off_epoch
        if off or np.random.rand() >= self.prob:
            return 1.0, False
        both = self.mixup_alpha and self.cutmix_alpha
        cut = np.random.rand() < self.switch_prob if both else not self.mixup_alpha
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), bool(cut)
