"""The registry of data sets: a name from the configuration -> images, labels and their facts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, TensorDataset


@dataclass
class DataConfig:
    """Which images to train and test on, and how they are loaded.

    Args:
        name: The data set: digits (scikit-learn's handwritten digits).
        image_size: Height and width, in pixels, at which images enter the model.
        batch_size: Images per batch, in training and in testing.
        root: Folder of the data set; null for digits, which come with scikit-learn.
        workers: Processes that load data; 0 loads in the training process itself.
    """

    name: str
    image_size: int
    batch_size: int
    root: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for key in ("image_size", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if self.workers < 0:
            raise ValueError(f"workers: must be 0 or more, got {self.workers}")


class DataError(RuntimeError):
    """Data that is missing or not as it should be; the message is one line."""


@dataclass(frozen=True)
class ImageData:
    """A data set, split and ready to be loaded.

    Attributes:
        train: Yields (image, label): uint8 [C, H, W] and a class index.
        test: Likewise.
        num_classes: Number of classes.
        mean: Per channel, of images scaled to 0..1; one value per input channel.
        std: Likewise.
    """

    train: Dataset
    test: Dataset
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def in_chans(self) -> int:
        return len(self.mean)


def digits(config: DataConfig) -> ImageData:
    """scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels, part of that package.

    The split (1437 train, 360 test, classes balanced) is always the same, whatever the run's seed.

    Raises:
        DataError: scikit-learn is not installed, or `config.root` is set.
    """
    if config.root is not None:
        raise DataError("data.root: must be null for digits, which come with scikit-learn")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            "data.name: digits need scikit-learn: pip install qkformer[demo]"
        ) from error

    grey, labels = load_digits(return_X_y=True)  # values 0..16
    images = torch.tensor(grey, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    size = (config.image_size, config.image_size)
    images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    images = images.round().to(torch.uint8)
    labels = torch.tensor(labels, dtype=torch.long)
    train, test = (
        torch.tensor(part)
        for part in train_test_split(
            range(len(labels)), test_size=360, stratify=labels, random_state=0
        )
    )
    scaled = images[train].float() / 255
    return ImageData(
        train=TensorDataset(images[train], labels[train]),
        test=TensorDataset(images[test], labels[test]),
        num_classes=10,
        mean=(scaled.mean().item(),),
        std=(scaled.std().item(),),
    )


DATASETS: dict[str, Callable[[DataConfig], ImageData]] = {"digits": digits}


def load_dataset(config: DataConfig) -> ImageData:
    """The data set that `config.name` names.

    Raises:
        DataError: data missing or not as expected, in one line that names the key to change.
    """
    return DATASETS[config.name](config)
