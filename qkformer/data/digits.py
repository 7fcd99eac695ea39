"""scikit-learn's handwritten digits: real images that need no download."""

import torch
from torch.utils.data import TensorDataset

from qkformer.data.source import DataConfig, DataError, ImageData


def digits(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """1797 grey images of 8 x 8 pixels, part of scikit-learn.

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
