"""scikit-learn's handwritten digits: real images that need no download."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import TensorDataset

from qkformer.data.source import DataConfig, DataError, ImageData

WHITE = 16  # the largest grey value


@dataclass(frozen=True)
class Digits:
    """The digits and their split, which is always the same, whatever the run's seed.

    Attributes:
        images: Grey values 0 to `WHITE`, uint8 [1797, 8, 8].
        labels: Class indices, int64 [1797].
        train: Indices of the 1437 training samples.
        test: Indices of the 360 test samples. The classes are balanced in both parts.
    """

    images: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray


def read_digits(config: DataConfig) -> Digits:
    """The digits as they come with scikit-learn.

    Raises:
        DataError: scikit-learn is not installed, or `config.root` is set.
    """
    if config.root is not None:
        raise DataError(
            f"data.root: must be null for {config.name}: the digits come with scikit-learn"
        )
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            f"data.name: {config.name} needs scikit-learn: pip install qkformer[demo]"
        ) from error

    grey, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    images = grey.reshape(-1, 8, 8).astype(np.uint8)
    return Digits(images, labels.astype(np.int64), train, test)


def digits(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """1797 grey images of 8 x 8 pixels, part of scikit-learn.

    Raises:
        As `read_digits`.
    """
    digits = read_digits(config)
    images = torch.from_numpy(digits.images).unsqueeze(1) * (255 / WHITE)
    images = images.round().to(torch.uint8)
    labels = torch.from_numpy(digits.labels)
    train, test = torch.from_numpy(digits.train), torch.from_numpy(digits.test)
    scaled = images[train].float() / 255
    return ImageData(
        train=TensorDataset(images[train], labels[train]),
        test=TensorDataset(images[test], labels[test]),
        num_classes=10,
        mean=(scaled.mean().item(),),
        std=(scaled.std().item(),),
    )
