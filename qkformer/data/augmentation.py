"""The `augmentation` section of a configuration: what is done to training samples."""

import math
import sys
from dataclasses import dataclass


@dataclass
class AugmentationConfig:
    """What is done to training samples, in this order.

    Args:
        repeats: How often a sample is in an epoch, each time transformed anew and in another batch
            of the step, where it has several; an epoch is as long, of one in so many samples.
        crop_scale: Images: share of the area that a random crop keeps, [least, most]; null for no
            random crop, but the same resize and centre crop as in testing.
        crop_ratio: Images: width over height of the random crop, [least, most].
        hflip: Probability of a horizontal flip.
        auto_augment: Images: a policy as timm spells it, such as rand-m9-mstd0.5-inc1; or cifar10,
            AutoAugment's for that data set, torchvision's. Event frames: "event", one of identity,
            shear, translations, rotation and cutout, the same for all frames of a sample. null for
            none.
        shift: Largest random move in x and in y, in pixels; 0 for none.
        mixup_alpha: Mixup draws its share from Beta(alpha, alpha); 0 for no mixup.
        cutmix_alpha: Likewise of CutMix, where a rectangle of another sample is that share; 0 for
            no CutMix.
        switch_prob: Probability that it is CutMix, where there are both.
        mixup_prob: Probability that a batch is mixed, by either.
        mixup_off_epoch: First epoch without mixup and CutMix; 0 mixes to the end.
        erasing_prob: Images: probability that a random rectangle is erased.
        erasing_mode: Images: what takes its place: const (0 after normalisation), rand (one random
            colour) or pixel (random pixels).
        cutout: Images: side in pixels of a square that is set to 0 after normalisation, its centre
            anywhere in the image; 0 for none.
    """

    repeats: int = 1
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    hflip: float = 0.0
    auto_augment: str | None = None
    shift: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_prob: float = 0.5
    mixup_prob: float = 1.0
    mixup_off_epoch: int = 0
    erasing_prob: float = 0.0
    erasing_mode: str = "const"
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats: must be at least 1, got {self.repeats}")
        for key in ("hflip", "erasing_prob", "mixup_prob", "switch_prob"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: must be in 0 <= value <= 1, got {getattr(self, key)}")
        for key in ("shift", "mixup_off_epoch", "cutout"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")
        for key in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")
        if self.switch_prob != 0.5 and not self.mixup_alpha * self.cutmix_alpha:
            raise ValueError("switch_prob: acts with both mixup_alpha and cutmix_alpha only")
        if self.erasing_mode not in ("const", "rand", "pixel"):
            raise ValueError(
                f"erasing_mode: must be const, rand or pixel, got {self.erasing_mode!r}"
            )
        for key, most in (("crop_scale", 1.0), ("crop_ratio", sys.float_info.max)):
            pair = getattr(self, key)
            if pair is not None and not 0 < pair[0] <= pair[1] <= most:
                raise ValueError(f"{key}: must be [least, most] above 0, got {list(pair)}")
        if self.crop_ratio is not None and self.crop_scale is None:
            raise ValueError("crop_ratio: acts with crop_scale only")
