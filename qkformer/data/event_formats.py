"""How the event data sets are published, and what SpikingJelly makes of a part of them."""

import gzip
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from qkformer.data.cifar import CIFAR10_CLASSES
from qkformer.data.source import DataError

FILES_PER_PIECE = 50


@dataclass(frozen=True)
class Piece:
    """A part of the extracted data that is converted on its own.

    Attributes:
        view: What SpikingJelly is shown as the whole: path -> the file there, or its text.
        files: Event files that it makes of it, relative to events_np.
    """

    view: dict[str, Path | str]
    files: list[str]


@dataclass(frozen=True)
class EventFormat:
    """An event data set.

    Attributes:
        name: For messages.
        extracted: Folders in `extract`.
        classes: Folders in `events_np` and among the frames.
        library: Imports SpikingJelly's class, which only preparing needs: it imports Matplotlib.
        pieces: Divides `extract`; DataError where it is incomplete.
    """

    name: str
    extracted: tuple[str, ...]
    classes: tuple[str, ...]
    library: Callable[[], type]
    pieces: Callable[[Path], list[Piece]]

    def archives(self) -> dict[str, str]:
        """Files to be put into `download`: name -> where to get it, and its md5."""
        return {
            name: f"{url}, md5 {md5}"
            for name, url, md5 in self.library().resource_url_md5()
            if name.endswith((".zip", ".tar.gz"))
        }

    def members(self, archive: Path) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
        """Path, size in bytes and opener of the files in an archive that belong to the data.

        What lies elsewhere (a read-me, a Mac's ._files, paths with ..) is passed over. To be opened
        in turn, or a tar has to be read once more.
        """
        for path, size, opener in (_zip if archive.suffix == ".zip" else _tar)(archive):
            path = PurePosixPath(path)
            if str(path.parent) in self.extracted and not path.name.startswith("."):
                yield str(path), size, opener


def _zip(archive: Path) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, partial(file.open, info)


def _tar(archive: Path) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as file:
        for member in file:
            if member.isfile():
                yield member.name, member.size, partial(file.extractfile, member)
        # Where bytes make no sense, tarfile takes it for the end. Whether it was is in the checksum
        # that gzip compares when it comes to the real one.
        while stream.read(1 << 20):
            pass


def _dvs128_gesture_library() -> type:
    from spikingjelly.datasets.dvs128_gesture import DVS128Gesture

    return DVS128Gesture


def _cifar10_dvs_library() -> type:
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS

    return CIFAR10DVS


def _trials(extract: Path) -> list[Piece]:
    """One piece for every recording (user and light) that the lists of trials name."""
    folder = extract / "DvsGesture"
    pieces = []
    for split in ("train", "test"):
        other = "test" if split == "train" else "train"
        for trial in _existing(folder / f"trials_to_{split}.txt").read_text().split():
            stem = trial.removesuffix(".aedat")
            labels = _existing(folder / f"{stem}_labels.csv")
            view = {
                f"DvsGesture/{trial}": _existing(folder / trial),
                f"DvsGesture/{labels.name}": labels,
                f"DvsGesture/trials_to_{split}.txt": trial,
                f"DvsGesture/trials_to_{other}.txt": "",
            }
            pieces.append(Piece(view, [f"{split}/{name}" for name in _samples(stem, labels)]))
    return pieces


def _samples(stem: str, labels: Path) -> list[str]:
    """The samples of a recording: those of a class (1, 2, .. in the file) are numbered from 0."""
    try:
        classes = np.loadtxt(labels, dtype=int, delimiter=",", skiprows=1, ndmin=2)[:, 0] - 1
    except (ValueError, IndexError) as error:
        raise DataError(f"data.root: {labels} cannot be read: {error}") from error
    counts = dict.fromkeys(classes.tolist(), 0)
    names = []
    for label in classes.tolist():
        names.append(f"{label}/{stem}_{counts[label]}.npz")
        counts[label] += 1
    return names


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data.root: {path} is missing")
    return path


def _class_folders(extract: Path) -> list[Piece]:
    """Some recordings at a time, each a sample."""
    pieces = []
    for name in CIFAR10_CLASSES:
        paths = sorted((extract / name).glob("[!.]*.aedat"))
        for start in range(0, len(paths), FILES_PER_PIECE):
            part = paths[start : start + FILES_PER_PIECE]
            view = {f"{name}/{path.name}": path for path in part}
            pieces.append(Piece(view, [f"{name}/{path.stem}.npz" for path in part]))
    return pieces


_GESTURES = (  # of folder 0, 1, ..
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter-clockwise", "left arm clockwise", "left arm counter-clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
# by class index, the place of the folder's name in alphabetical order
GESTURES = tuple(_GESTURES[folder] for folder in sorted(range(11), key=str))

DVS128_GESTURE = EventFormat(
    name="DVS128 Gesture",
    extracted=("DvsGesture",),
    classes=tuple(f"{split}/{label}" for split in ("train", "test") for label in range(11)),
    library=_dvs128_gesture_library,
    pieces=_trials,
)
CIFAR10_DVS = EventFormat(
    name="CIFAR10-DVS",
    extracted=CIFAR10_CLASSES,
    classes=CIFAR10_CLASSES,
    library=_cifar10_dvs_library,
    pieces=_class_folders,
)
