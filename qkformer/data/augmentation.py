"""The `augmentation` section of a configuration: what is done to training samples."""

import math
import sys
from dataclasses import dataclass


@dataclass
class AugmentationConfig:
    """What is done to training samples, in this order.

    Args:
        crop_scale: Images: share of the area that a random crop keeps, [least, most]; null for no
            random crop, but the same resize and centre crop as in testing.
        crop_ratio: Images: width over height of the random crop, [least, most].
        hflip: Probability of a horizontal flip.
        auto_augment: Images: a policy as timm spells it, such as rand-m9-mstd0.5-inc1. Event
            frames: "event", one of identity, shear, translations, rotation and cutout, the same for
            all frames of a sample. null for none.
        shift: Largest random move in x and in y, in pixels; 0 for none.
        mixup_alpha: Mixup draws its share from Beta(alpha, alpha); 0 for no mixup.
        mixup_prob: Probability that a batch is mixed.
        mixup_off_epoch: First epoch without mixup; 0 mixes to the end.
        erasing_prob: Images: probability that a random rectangle is erased.
        erasing_mode: Images: what takes its place: const (0 after normalisation), rand (one random
            colour) or pixel (random pixels).
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    hflip: float = 0.0
    auto_augment: str | None = None
    shift: int = 0
    mixup_alpha: float = 0.0
    mixup_prob: float = 1.0
    mixup_off_epoch: int = 0
    erasing_prob: float = 0.0
    erasing_mode: str = "const"

    def __post_init__(self) -> None:
        for key in ("hflip", "erasing_prob", "mixup_prob"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: must be in 0 <= value <= 1, got {getattr(self, key)}")
        for key in ("shift", "mixup_off_epoch"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")
        if not 0 <= self.mixup_alpha < math.inf:
            raise ValueError(f"mixup_alpha: must be 0 or more, got {self.mixup_alpha}")
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
