"""What happens to images: to one at a time as it is loaded, to a batch on the device."""

import re
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import (
    AutoAugment,
    AutoAugmentPolicy,
    CenterCrop,
    Compose,
    InterpolationMode,
    PILToTensor,
    Resize,
)
from torchvision.transforms.functional import to_pil_image

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.mixup import Mixup
from qkformer.data.samples import seeded
from qkformer.data.source import DataConfig, DataError
from qkformer.text import one_line

ImageTransform = Callable[[Image.Image | Tensor], Tensor]


def training_transform(
    augmentation: AugmentationConfig, config: DataConfig, mean: tuple[float, ...]
) -> ImageTransform:
    """Crop, flip and policy of `augmentation`: an image of any size -> uint8 [C, S, S].

    S is `config.image_size`; images are PIL images or uint8 tensors [C, H, W].

    Args:
        augmentation: Without `crop_scale`, images are resized and cropped as in testing.
        config: The size, and `crop_pct` for images that are not cropped at random.
        mean: Per channel, of images scaled to 0..1: the colour that the policy fills holes with.

    Raises:
        DataError: a policy that timm does not know or does not understand to the end.
    """
    policy = augmentation.auto_augment
    try:
        _check_policy(policy)
        transform = create_transform(
            config.image_size,
            is_training=True,
            use_prefetcher=True,  # images stay uint8: they are normalised on the device
            scale=augmentation.crop_scale,
            ratio=augmentation.crop_ratio,
            hflip=augmentation.hflip,
            color_jitter=None,
            auto_augment=None if policy == "cifar10" else policy,
            interpolation="bicubic",
            mean=mean,
        )
        crop, *others = transform.transforms
        if policy == "cifar10":
            fill = tuple(round(255 * value) for value in mean)
            others.insert(-1, AutoAugment(AutoAugmentPolicy.CIFAR10, fill=fill))
        # timm has no training transform with the geometry of testing
        geometry = [crop] if augmentation.crop_scale is not None else _resize_and_crop(config)
        transform = Compose([_to_pil, *geometry, *others])
        with seeded(0):  # some policies fail only when they are used
            transform(torch.zeros(len(mean), 8, 8, dtype=torch.uint8))
    except Exception as error:  # timm raises anything, often without a word
        if policy is None:
            raise
        reason = one_line(error)
        raise DataError(
            f"augmentation.auto_augment: {policy!r} is not a policy for images such as "
            f"rand-m9-mstd0.5-inc1 ({reason})"
        ) from error
    return transform


def _check_policy(policy: str | None) -> None:
    """Refuse what timm would pass over in silence."""
    if policy is None:
        return
    if not policy:
        raise ValueError("empty; null is for none")
    kind, *settings = policy.split("-")
    for setting in settings:
        named_set = kind == "rand" and setting in ("tweights", "t3a", "t3aw")
        if not named_set and not re.fullmatch(r"[a-su-z][a-z]*\d.*", setting):
            raise ValueError(f"{setting!r} would have no effect")


def test_transform(config: DataConfig) -> ImageTransform:
    """Resize and cut out the centre: an image of any size -> uint8 [C, S, S].

    S is `config.image_size`, the shorter side is resized to S / crop_pct; as in training_transform,
    images are PIL images or uint8 tensors.
    """
    return Compose([_to_pil, *_resize_and_crop(config), PILToTensor()])


def _resize_and_crop(config: DataConfig) -> list[nn.Module]:
    shorter_side = int(config.image_size / crop_share(config))
    return [
        Resize(shorter_side, InterpolationMode.BICUBIC),
        CenterCrop(config.image_size),
    ]


def crop_share(config: DataConfig) -> float:
    """What of the shorter side of a test image is kept."""
    if config.crop_pct is not None:
        return config.crop_pct
    return 0.875 if config.image_size <= 224 else 1.0


def _to_pil(image: Image.Image | Tensor) -> Image.Image:
    return to_pil_image(image) if isinstance(image, Tensor) else image


class ImageAugmentation(nn.Module):
    """A training batch on its device: uint8 [B, C, H, W] -> float [B, C, H, W], and its targets.

    Images move, are mixed, normalised, and lose a rectangle: the order of timm's loader, in which
    no rectangle shows through another image. Which images lose one, and where, is drawn from
    Python's global random numbers; what takes its place from those of the batch's device. The
    square of `cutout` comes from the CPU's.

    Args:
        augmentation: `shift`, the keys of mixup, `erasing_prob`, `erasing_mode` and `cutout`.
        mean: Per channel, of images scaled to 0..1.
        std: Likewise.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        augmentation: AugmentationConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.shift, self.mix = augmentation.shift, Mixup(augmentation, num_classes)
        self.erasing_prob, self.erasing_mode = augmentation.erasing_prob, augmentation.erasing_mode
        self.cutout = augmentation.cutout
        self.normalise = Normalise(mean, std)

    def forward(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Class indices [B] -> class indices, or probabilities [B, classes] with mixup."""
        images, targets = self.mix(random_shift(images, self.shift), labels, epoch)
        images = self.normalise(images)
        if self.erasing_prob:  # built here, as it has to be told the device
            erase = RandomErasing(
                self.erasing_prob, mode=self.erasing_mode, max_count=1, device=images.device
            )
            images = erase(images)
        if self.cutout:
            images = cutout(images, send(centred_squares(images, self.cutout), images.device))
        return images, targets


class Normalise(nn.Module):
    """uint8 images [B, C, H, W] -> float images with mean 0 and standard deviation 1.

    Args:
        mean: Per channel, of images scaled to 0..1.
        std: Likewise.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # one multiplication and one addition: (x / 255 - mean) / std = x * scale + offset
        mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.to(self.scale.dtype) * self.scale + self.offset


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Move every image by its own whole number of pixels, -pixels..pixels in x and in y.

    What moves in from outside is 0. Draws from the CPU's global random numbers, so that the
    moves are the same on every device.

    Args:
        images: [B, C, H, W], any dtype.
        pixels: Largest move; 0 returns the images as they are.

    Returns:
        [B, C, H, W], the dtype and device of `images`.
    """
    if pixels == 0:
        return images
    batch, _, height, width = images.shape
    padded = nn.functional.pad(images, (pixels, pixels, pixels, pixels))
    down, right = send(torch.randint(0, 2 * pixels + 1, (2, batch, 1)), images.device)
    rows = (down + torch.arange(height, device=images.device)).view(batch, 1, height, 1)
    columns = (right + torch.arange(width, device=images.device)).view(batch, 1, 1, width)
    sample = torch.arange(batch, device=images.device).view(batch, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def centred_squares(images: Tensor, side: int) -> Tensor:
    """A square per image [B, C, H, W], its centre anywhere: int64 [B, 3] of top, left and side.

    On the CPU. Parts of it may be outside: DeVries and Taylor, arXiv 1708.04552.
    """
    batch, _, height, width = images.shape
    top, left = (torch.randint(size, (batch,)) - side // 2 for size in (height, width))
    return torch.stack([top, left, torch.full_like(top, side)], dim=1)


def cutout(images: Tensor, squares: Tensor) -> Tensor:
    """Set a square of every sample to 0.

    Args:
        images: [B, ..., H, W], any dtype.
        squares: [B, 3], integers: top, left and side in pixels; side 0 leaves a sample as it is.

    Returns:
        [B, ..., H, W].
    """
    top, left, side = (part.view(-1, *[1] * (images.ndim - 1)) for part in squares.unbind(1))
    rows = torch.arange(images.shape[-2], device=images.device)[:, None]
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return images.masked_fill(in_rows & in_columns, 0)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Random numbers drawn on the CPU, on the device.

    From memory that is not pinned, the CPU would wait until the GPU has done all it was given.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
