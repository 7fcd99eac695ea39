"""What happens to a whole batch of event frames at once, on the device it is trained on."""

import math

import torch
from torch import Tensor, nn

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.image_transforms import cutout, random_shift, send
from qkformer.data.mixup import Mixup
from qkformer.data.source import DataError

MAGNITUDES = 31  # steps from the least to the most of an operation
LARGEST_SHEAR = 0.3  # radians
LARGEST_MOVE = 5  # pixels
LARGEST_ANGLE = 30.0  # degrees
CUTOUT_SHARE = (0.001, 0.11)  # of the area of a frame
OPERATIONS = ("identity", "shear_x", "translate_x", "translate_y", "rotate", "cutout")


class EventFrames(nn.Module):
    """Event counts int16 [B, T, C, stored, stored] -> float32 [B, T, C, image_size, image_size].

    A smaller size sums the counts over blocks of pixels, so that no event is lost.

    Args:
        stored: Height and width of the frames as stored, in pixels.
        image_size: Height and width of the frames as the model takes them.

    Raises:
        DataError: `image_size` does not divide `stored`.
    """

    def __init__(self, stored: int, image_size: int) -> None:
        super().__init__()
        if stored % image_size:
            raise DataError(
                f"data.image_size: {image_size} does not divide the {stored} pixels of the frames"
            )
        self.block = stored // image_size

    def forward(self, frames: Tensor) -> Tensor:
        frames = frames.to(torch.float32)
        if self.block == 1:
            return frames
        blocks = frames.unflatten(-1, (-1, self.block)).unflatten(-3, (-1, self.block))
        return blocks.sum(dim=(-3, -1))

    def extra_repr(self) -> str:
        return f"block={self.block}"


class EventAugmentation(nn.Module):
    """Random flip, operation and shift of every sample, the same for all of its frames; then mixup.

    The operation is one of `OPERATIONS`, all equally likely, with one of 31 equally likely
    magnitudes: the augmentation of QKFormer's release for event data. Moves are in pixels of the
    frames as stored; only then are the counts summed to `image_size`, and mixed. Draws from the
    CPU's global random numbers, so that a seed does the same on every device.

    Args:
        augmentation: The `augmentation` section.
        stored: Height and width of the frames as stored, in pixels.
        image_size: Height and width of the frames as the model takes them.
        num_classes: Number of classes.

    Input: int16 [B, T, C, stored, stored]. Output: float32 [B, T, C, image_size, image_size].

    Raises:
        DataError: a key that does not act on event frames.
    """

    def __init__(
        self, augmentation: AugmentationConfig, stored: int, image_size: int, num_classes: int
    ) -> None:
        super().__init__()
        _check_that_every_key_acts(augmentation)
        self.hflip, self.shift = augmentation.hflip, augmentation.shift
        self.operations = augmentation.auto_augment is not None
        self.frames = EventFrames(stored, image_size)
        self.mix = Mixup(augmentation, num_classes)
        self._inverse = operation_matrices()  # stays on the CPU, where the random numbers are

    def forward(self, frames: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Class indices [B] -> class indices, or probabilities [B, classes] with mixup."""
        if self.hflip:
            flipped = send(torch.rand(len(frames), 1, 1, 1, 1) < self.hflip, frames.device)
            frames = torch.where(flipped, frames.flip(-1), frames)
        if self.operations:
            frames = self._operate(frames)
        if self.shift:
            merged = frames.flatten(1, 2)  # one move for all frames of a sample
            frames = random_shift(merged, self.shift).view_as(frames)
        return self.mix(self.frames(frames), labels, epoch)

    def _operate(self, frames: Tensor) -> Tensor:
        batch, *_, height, width = frames.shape
        # every sample draws for every operation: a draw less would change those of its neighbours
        operation = torch.randint(len(OPERATIONS), (batch,))
        magnitude = torch.randint(MAGNITUDES, (batch,))
        squares = random_squares(batch, height, width)
        squares[operation != OPERATIONS.index("cutout"), 2] = 0
        frames = warp(frames, send(self._inverse[operation, magnitude], frames.device))
        return cutout(frames, send(squares, frames.device))

    def extra_repr(self) -> str:
        return f"hflip={self.hflip}, operations={self.operations}, shift={self.shift}"


def shear_x_matrix(radians: float) -> Tensor:
    """Inverse matrix [2, 3] that moves every row by -tan(radians) times its height over the centre.

    So do all matrices here, it takes a pixel of the result to where it comes from: (x, y, 1) ->
    (x, y), in pixels from the centre of the frame, float32.
    """
    return torch.tensor([[1.0, math.tan(radians), 0.0], [0.0, 1.0, 0.0]])


def translate_matrix(x: int, y: int) -> Tensor:
    """Inverse matrix [2, 3] of a move by x pixels to the right and y down."""
    return torch.tensor([[1.0, 0.0, -float(x)], [0.0, 1.0, -float(y)]])


def rotate_matrix(degrees: float) -> Tensor:
    """Inverse matrix [2, 3] of a rotation about the centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]])


def operation_matrices() -> Tensor:
    """Inverse matrices of `OPERATIONS` at all magnitudes, float32 [operations, 31, 2, 3]."""

    # float64: in float32 it depends on the processor whether a step of 2 px is truncated to 1
    def magnitudes(most: float) -> list[float]:
        return torch.linspace(-most, most, MAGNITUDES, dtype=torch.float64).tolist()

    moves = [int(move) for move in magnitudes(LARGEST_MOVE)]
    matrices = {
        "shear_x": [shear_x_matrix(radians) for radians in magnitudes(LARGEST_SHEAR)],
        "translate_x": [translate_matrix(move, 0) for move in moves],
        "translate_y": [translate_matrix(0, move) for move in moves],
        "rotate": [rotate_matrix(degrees) for degrees in magnitudes(LARGEST_ANGLE)],
    }
    still = [translate_matrix(0, 0)] * MAGNITUDES
    return torch.stack([torch.stack(matrices.get(name, still)) for name in OPERATIONS])


def warp(frames: Tensor, inverse: Tensor) -> Tensor:
    """Transform every sample by a matrix of its own; nearest neighbour, zeros from outside.

    Equal to torchvision's `affine` and `rotate` of tensors, ties included. Not made of
    `affine_grid` and `grid_sample`: single multiplications and additions round alike on every
    device, whereas a matrix product may run in TF32 or half precision and CUDA's `grid_sample`
    rounds ties differently.

    Args:
        frames: [B, T, C, H, W], any dtype.
        inverse: [B, 2, 3], result -> source, in pixels from the centre (x right, y down).

    Returns:
        [B, T, C, H, W], the dtype and device of `frames`.
    """
    batch, height, width = len(frames), *frames.shape[-2:]
    inverse = inverse.to(torch.float32)
    y, x = (
        torch.arange(size, device=frames.device, dtype=torch.float32) - (size - 1) / 2
        for size in (height, width)
    )
    columns = _source(inverse[:, 0], x, y[:, None], width)
    rows = _source(inverse[:, 1], x, y[:, None], height)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixel = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)  # [B, H, W]
    flat = frames.reshape(batch, -1, height * width)
    moved = flat.gather(-1, pixel.view(batch, 1, -1).expand_as(flat)).view_as(frames)
    return moved.masked_fill(~inside.view(batch, 1, 1, height, width), 0)


def _source(row: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Index of the pixel that each pixel comes from along one axis, int64 [B, H, W].

    Steps and their order are those of torchvision's grid (coordinates in -1..1) and of PyTorch's
    `grid_sample`: at a tie between two pixels the last bit decides.
    """
    row = (row / (0.5 * size)).view(-1, 3, 1, 1)
    coordinate = x * row[:, 0] + y * row[:, 1] + row[:, 2]
    return ((coordinate + 1) * (size / 2) - 0.5).round().long()


def random_squares(batch: int, height: int, width: int) -> Tensor:
    """Random squares to cut out, int64 [B, 3] of top, left and side, on the CPU.

    As torchvision's `RandomErasing(scale=(0.001, 0.11), ratio=(1, 1))` draws them.
    """
    share = torch.empty(batch).uniform_(*CUTOUT_SHARE)
    side = (height * width * share).sqrt().round()
    top = (torch.rand(batch) * (height - side + 1)).floor()
    left = (torch.rand(batch) * (width - side + 1)).floor()
    return torch.stack([top, left, side], dim=1).long()


def _check_that_every_key_acts(augmentation: AugmentationConfig) -> None:
    unused = AugmentationConfig()
    for key in ("crop_scale", "crop_ratio", "erasing_prob", "erasing_mode", "cutout"):
        if getattr(augmentation, key) != getattr(unused, key):
            raise DataError(f"augmentation.{key}: does not act on event frames; leave it out")
    if augmentation.auto_augment not in (None, "event"):
        raise DataError(
            "augmentation.auto_augment: event frames take event or null, "
            f"got {augmentation.auto_augment}"
        )
