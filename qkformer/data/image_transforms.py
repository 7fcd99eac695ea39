"""What happens to a whole batch of images at once, on the device it is trained on."""

import torch
from torch import Tensor, nn


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
    down, right = torch.randint(0, 2 * pixels + 1, (2, batch, 1)).to(images.device)
    rows = (down + torch.arange(height, device=images.device)).view(batch, 1, height, 1)
    columns = (right + torch.arange(width, device=images.device)).view(batch, 1, 1, width)
    sample = torch.arange(batch, device=images.device).view(batch, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]
