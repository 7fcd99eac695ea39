"""Data sets recorded with event cameras: DVS128 Gesture and CIFAR10-DVS."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qkformer.data.cifar import CIFAR10_CLASSES
from qkformer.data.event_formats import CIFAR10_DVS, DVS128_GESTURE, GESTURES, EventFormat
from qkformer.data.event_preparation import SIZE, prepare_frames
from qkformer.data.samples import DAMAGE_OR_BUG, LabelledPaths
from qkformer.data.source import DataConfig, DataError, EventData, frames_per_recording

TEBN_TEST_SAMPLES = 100  # of every class
LARGEST_COUNT = torch.iinfo(torch.int16).max


class FrameFiles(Dataset):
    """Frames on disk, with their labels known beforehand.

    Args:
        samples: (path of the frames, class index).
        T: Frames that every file must have.

    Yields:
        Event counts int16 [T, 2, 128, 128] and a class index.

    Raises:
        As `read_frames`.
    """

    def __init__(self, samples: Iterable[tuple[str, int]], T: int) -> None:
        self.samples, self.T = LabelledPaths(samples), T

    @property
    def targets(self) -> np.ndarray:
        return self.samples.labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_frames(path, self.T), label


def read_frames(path: str | Path, T: int) -> Tensor:
    """Event counts int16 [T, 2, 128, 128] from an .npz of ours or of SpikingJelly's.

    Raises:
        ValueError: the frames have another shape, or counts that int16 cannot hold.
        OSError, or one of `qkformer.data.samples.DAMAGE`: the file is missing or damaged.
    """
    try:
        with np.load(path) as file:
            frames = file["frames"]
    except DAMAGE_OR_BUG as error:
        raise ValueError(str(error)) from error
    return checked_frames(frames, T, SIZE)


def checked_frames(frames: np.ndarray, T: int, size: int) -> Tensor:
    """Event counts int16 [T, 2, size, size].

    Raises:
        ValueError: as `read_frames`.
    """
    if frames.shape != (T, 2, size, size):
        raise ValueError(f"expected frames of shape {(T, 2, size, size)}, found {frames.shape}")
    least, most = frames.min(), frames.max()
    if not (least >= 0 and most <= LARGEST_COUNT):  # nan is neither
        raise ValueError(f"event counts must be 0 to {LARGEST_COUNT}, found {least} to {most}")
    return torch.from_numpy(frames.astype(np.int16, copy=False))


def dvs128_gesture(config: DataConfig, T: int | None = None, *, training: bool = True) -> EventData:
    """DVS128 Gesture (Amir et al., CVPR 2017): 11 gestures, official 1176 / 288 train / test.

    Every trial is a sample, cut out by its start and end as SpikingJelly does. A class index is
    the place of the folder's name in alphabetical order (0, 1, 10, 2, ..), as for torchvision and
    SpikingJelly, so that weights trained with these agree.

    Args:
        config: `root` has SpikingJelly's folders, or DvsGesture.tar.gz in a folder download.
        T: Frames per sample, split by number of events.
        training: Makes no difference: both parts are prepared at once.

    Raises:
        DataError: no T or root; data missing, damaged or not as they should be.
    """
    frames = _prepared(config, T, DVS128_GESTURE)
    labels = sorted(str(label) for label in range(11))
    train, test = (
        FrameFiles([s for samples in _by_class(frames / split, labels) for s in samples], T)
        for split in ("train", "test")
    )
    return EventData(train, test, num_classes=11, size=SIZE, class_names=GESTURES)


def cifar10_dvs(config: DataConfig, T: int | None = None, *, training: bool = True) -> EventData:
    """CIFAR10-DVS (Li et al., 2017): 10 classes of 1000, recorded from CIFAR-10's images.

    Splits (`config.split`); accuracies on the two cannot be compared:
        released, null: of every class the first 90 % of the file names in alphabetical order
            (cifar10_bird_0, _1, _10, _100, ..) train, the others test.
        tebn: samples 0 to 99 of every class test, all others train, by the number in the file name.
            This is what SpikingJelly's CIFAR10DVSTEBNSplit does, which makes folders of links for
            it; here none are made, and those that exist are passed over.

    Args:
        config: `root` has SpikingJelly's folders, or airplane.zip, .. in a folder download.
        T: Frames per sample, split by number of events.
        training: Whether it is an error if the split leaves no samples to train on.

    Raises:
        DataError: no T or root; data missing, damaged or not as they should be; a split that leaves
            nothing to train on or to test.
    """
    frames = _prepared(config, T, CIFAR10_DVS)
    train, test = [], []
    for samples in _by_class(frames, CIFAR10_CLASSES):
        if config.split == "tebn":
            tested = [_number(path) < TEBN_TEST_SAMPLES for path, _ in samples]
        else:
            tested = [place >= len(samples) * 9 // 10 for place in range(len(samples))]
        for sample, is_tested in zip(samples, tested, strict=True):
            (test if is_tested else train).append(sample)
    for name, samples, needed in (("train on", train, training), ("test", test, True)):
        if needed and not samples:
            raise DataError(f"data.split: {config.split or 'released'} leaves nothing to {name}")
    parts = FrameFiles(train, T), FrameFiles(test, T)
    return EventData(*parts, num_classes=10, size=SIZE, class_names=CIFAR10_CLASSES)


def _prepared(config: DataConfig, T: int | None, format: EventFormat) -> Path:
    if config.root is None:
        raise DataError(f"data.root: {format.name} needs the folder where it is")
    T = frames_per_recording(T, format.name)
    return prepare_frames(Path(config.root).expanduser(), format, T)


def _by_class(folder: Path, names: Sequence[str]) -> list[list[tuple[str, int]]]:
    """(path, class index) of the files of every class, in alphabetical order."""
    return [
        [(str(path), label) for path in sorted((folder / name).glob("[!.]*.npz"))]
        for label, name in enumerate(names)
    ]


def _number(path: str) -> int:
    """.../cifar10_bird_37.npz -> 37"""
    number = re.search(r"_(\d+)\.npz$", path)
    if number is None:
        raise DataError(f"data.split: tebn goes by a number that {path} does not end with")
    return int(number[1])
