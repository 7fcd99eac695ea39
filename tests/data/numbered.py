"""A data set of numbers, and what loaders make of it."""

import os
import signal

import torch
from torch.utils.data import Dataset

from qkformer.data.loaders import read
from qkformer.data.source import DataConfig

CPU = torch.device("cpu")


class Numbers(Dataset):
    """Sample i is the number i, of class i; some cannot be read, one kills its reader."""

    def __init__(self, size=20, broken=(), deadly=None):
        self.size, self.broken, self.deadly = size, broken, deadly

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.broken:
            raise OSError("image file is truncated")
        return torch.tensor([float(index)]), index


def config(**changes):
    return DataConfig(**{"name": "digits", "image_size": 8, "batch_size": 4, **changes})


def values(loader, on_damaged="error"):
    return [batch.samples.flatten().tolist() for batch in read(loader, on_damaged)]
