"""Single samples: read, transformed with random numbers of their own, or named as damaged."""

import random
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qkformer.data.source import DataError
from qkformer.text import one_line

# What the decoders of images and of .npz files raise on files that are missing, cut off or
# overwritten, found by overwriting some.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Damaged:
    """A sample that could not be read: which one, and why."""

    sample: str
    reason: str

    def __str__(self) -> str:
        return f"{self.sample}: {self.reason}"


class Samples(Dataset):
    """Samples of a data set, or some of them, each transformed with random numbers of its own.

    The key of a sample is its index and the seed of its transform. So what is done to a sample
    depends on neither the worker that does it nor on what was done before: a run goes on in the
    middle of an epoch, and with another number of workers, exactly as it would have.

    Args:
        source: Yields (sample, class index).
        transform: What the sample goes through; None leaves it as it is.
        indices: Which samples of `source`; None for all.
    """

    def __init__(
        self,
        source: Dataset,
        transform: Callable[[Any], Tensor] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.source, self.transform = source, transform
        self.indices = range(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | Damaged:
        index, seed = key
        index = self.indices[index]
        try:
            sample, label = self.source[index]
        except DAMAGE as error:
            return Damaged(self._name(index), one_line(error))
        if self.transform is not None:
            with seeded(seed):
                sample = self.transform(sample)
        return sample, int(label)

    def _name(self, index: int) -> str:
        if hasattr(self.source, "samples"):  # torchvision's folders: (path, label)
            return str(self.source.samples[index][0])
        return f"sample {index}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's CPU random numbers, and put them back behind."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    # each its own: from one seed, NumPy and PyTorch draw the same bits, and flips would go with
    # the choice of a policy's operations
    np.random.seed(random.getrandbits(32))
    # not torch.manual_seed, which seeds CUDA as well
    torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def held_out(source: Dataset, fraction: float) -> tuple[Sequence[int] | None, list[int]]:
    """Divide training samples into those to train on and those to choose the best epoch by.

    Of every class the same share is held out, always the same samples.

    Args:
        source: Training samples, with their labels in `targets` (or a TensorDataset).
        fraction: Share held out, 0 <= fraction < 1.

    Returns:
        Indices to train on (None: all) and indices held out.

    Raises:
        DataError: the fraction holds out nothing, or all there is of a class.
    """
    if fraction == 0:
        return None, []
    labels = np.asarray(source.targets if hasattr(source, "targets") else source.tensors[1])
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    classes, sizes = np.unique(labels, return_counts=True)
    counts = [round(fraction * size) for size in sizes.tolist()]
    starts = np.cumsum(sizes) - sizes
    parts = [by_class[start : start + n] for start, n in zip(starts, counts, strict=True)]
    held = np.sort(np.concatenate(parts))
    used_up = classes[sizes == counts]
    if not len(held) or len(used_up):
        left = f"nothing of class {used_up[0]} to train on" if len(held) else "none held out"
        raise DataError(
            f"data.val_fraction: {fraction} of {len(labels)} training samples leaves {left}"
        )
    return np.setdiff1d(order, held).tolist(), held.tolist()
