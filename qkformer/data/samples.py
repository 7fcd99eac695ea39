"""Single samples: read, transformed with random numbers of their own, or named as damaged."""

import os
import random
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, get_worker_info

from qkformer.data.source import DataError
from qkformer.text import one_line

# What decoders of images, .npz files and archives raise where bytes are damaged or missing, found
# by overwriting some. OSError is left out: where files are written as well, it may be a full disk.
DAMAGE = (
    ValueError, KeyError, EOFError, SyntaxError, NotImplementedError, struct.error, zlib.error,
    zipfile.BadZipFile, tarfile.TarError, tokenize.TokenError, Image.DecompressionBombError,
)  # fmt: skip
# Raised, too, where damage looks like encryption, a huge size or a short line; but by bugs as well,
# so that it is told from them only where nothing but a library reads.
DAMAGE_OR_BUG = (IndexError, MemoryError, OverflowError, RuntimeError)


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
        indices: Which samples of `source`, an array where they are many; None for all.
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
        index = int(self.indices[index])
        try:
            sample, label = self.source[index]
        except (OSError, *DAMAGE) as error:
            return Damaged(self._name(index), one_line(error))
        if self.transform is not None:
            with seeded(seed):
                sample = self.transform(sample)
        return sample, int(label)

    def _name(self, index: int) -> str:
        if hasattr(self.source, "samples"):  # of folders: (path, label)
            return str(self.source.samples[index][0])
        return f"sample {index}"


class LabelledPaths(Sequence):
    """A list of (path, class index), held in two arrays.

    As Python objects, a million of them were copied into every loading process bit by bit, as each
    look at one writes its reference count.
    """

    def __init__(self, samples: Iterable[tuple[str, int]]) -> None:
        paths, labels = [], []
        for path, label in samples:
            paths.append(os.fsencode(path))
            labels.append(label)
        self._paths = np.array(paths, dtype=bytes)
        self.labels = np.array(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return os.fsdecode(self._paths[index]), int(self.labels[index])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's CPU random numbers, and put them back behind.

    A loading process leaves them: nothing else draws there, and putting them back takes several
    times as long as seeding.
    """
    alone = get_worker_info() is not None
    before = None if alone else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    random.seed(seed)
    # each its own: from one seed, NumPy and PyTorch draw the same bits, and flips would go with
    # the choice of a policy's operations
    np.random.seed(random.getrandbits(32))
    # not torch.manual_seed, which seeds CUDA as well
    torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def held_out(source: Dataset, fraction: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Divide training samples into those to train on and those to choose the best epoch by.

    Of every class the same share is held out, always the same samples.

    Args:
        source: Training samples, with their labels in `targets` (or a TensorDataset).
        fraction: Share held out, 0 <= fraction < 1.

    Returns:
        Indices to train on (None: all) and indices held out, int64, in order.

    Raises:
        DataError: the labels are not known, the fraction holds out nothing, or all there is of a
            class.
    """
    if fraction == 0:
        return None, np.arange(0)
    labels = _labels(source)
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
    return np.setdiff1d(order, held), held


def _labels(source: Dataset) -> np.ndarray:
    if isinstance(source, TensorDataset):
        return np.asarray(source.tensors[1])
    if not hasattr(source, "targets"):
        raise DataError(
            "data.val_fraction: needs the class indices of all training samples, as an attribute "
            f"`targets` of their {type(source).__name__}"
        )
    return np.asarray(source.targets)
