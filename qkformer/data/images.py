"""CIFAR10, CIFAR100 and ImageNet, from the files they are distributed as."""

import codecs
import fcntl
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.datasets.folder import is_image_file
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from qkformer.data.source import DataConfig, DataError, ImageData

# CIFAR10's; the published runs normalise CIFAR100 with them too
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_SIZES = (50_000, 10_000)  # training and test images of either


def cifar10(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """60,000 RGB images of 32 x 32 pixels in 10 classes: data.root/cifar-10-batches-py.

    Files in the same format with fewer or more images are read too, with a warning. With the
    number of images that CIFAR10 has, they must be the published files.

    Raises:
        DataError: files that are missing, damaged or not the published ones.
    """
    return _cifar(config, CIFAR10, "labels", num_classes=10)


def cifar100(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """As cifar10, with 100 classes: data.root/cifar-100-python."""
    return _cifar(config, CIFAR100, "fine_labels", num_classes=100)


def imagenet(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """Folders of images: data.root/train/<class>/*.JPEG and data.root/val/<class>/*.JPEG.

    The classes are the folders, in alphabetical order; a part of ImageNet has as many as it has.

    Args:
        training: False leaves train/ alone, which then need not be there: a million files take a
            while to list.

    Raises:
        DataError: folders that are missing, empty or not sorted by class.
    """
    root = _root(config, "train/<class>/*.JPEG and val/<class>/*.JPEG")
    parts = ("train", "val") if training else ("val",)
    try:
        classes = {part: set(_class_folders(root, part)) for part in parts}
        for part in parts:
            alone = classes[part] - set.intersection(*classes.values())
            if alone:
                raise DataError(
                    f"data.root: train/ and val/ in {root} differ in their class folders: "
                    f"{len(alone)} only in {part}/: {_some(alone)}"
                )
        images = {part: _labelled_images(root / part) for part in parts}
    except OSError as error:
        raise DataError(f"data.root: {_line(error)}") from error
    return ImageData(
        train=images.get("train"),
        test=images["val"],
        num_classes=len(classes["val"]),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def _class_folders(root: Path, part: str) -> list[str]:
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"data.root: no folder {part}/ in {root}; expected are train/<class>/*.JPEG and "
            "val/<class>/*.JPEG"
        )
    with os.scandir(folder) as entries:
        folders, files = [], []
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    if not folders and any(map(is_image_file, files)):
        # how the official archive of validation images unpacks
        raise DataError(
            f"data.root: the images in {folder} must be sorted into one folder per class, named "
            "as in train/"
        )
    if not folders:
        raise DataError(f"data.root: no class folders in {folder}")
    return folders


def _labelled_images(folder: Path) -> ImageFolder:
    images = ImageFolder(str(folder), allow_empty=True)
    if not images.samples:
        raise DataError(f"data.root: no images in the class folders of {folder}")
    counts = np.bincount(images.targets, minlength=len(images.classes))
    empty = [name for name, count in zip(images.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"data.root: {len(empty)} class folders of {folder} without images: {_some(empty)}"
        )
    return images


class HeldImages(Dataset):
    """Images that are held in memory, as PIL images with their class index.

    Args:
        data: uint8 [N, H, W, 3].
        targets: N class indices.
    """

    def __init__(self, data: np.ndarray, targets: list[int]) -> None:
        self.data, self.targets = data, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index]), self.targets[index]


def _cifar(config: DataConfig, files: type[CIFAR10], labels: str, num_classes: int) -> ImageData:
    root = _root(
        config, f"{files.base_folder}/ or {files.filename}", must_exist=not config.download
    )
    folder = root / files.base_folder
    if _missing(folder, files):
        _unpack(root, files, config.download)
    parts, unknown = [], []
    for listed in (files.train_list, files.test_list):
        arrays, targets = [], []
        for name, md5 in listed:
            array, classes, found = _read_batch(folder / name, labels, num_classes)
            arrays.append(array)
            targets += classes
            unknown += [] if found == md5 else [name]
        parts.append(HeldImages(np.concatenate(arrays), targets))
    sizes = tuple(map(len, parts))
    if sizes != CIFAR_SIZES:
        warnings.warn(
            f"{folder}: {sizes[0]} training and {sizes[1]} test images, where the published files "
            f"have {CIFAR_SIZES[0]} and {CIFAR_SIZES[1]}",
            stacklevel=3,
        )
    elif unknown:
        raise DataError(
            f"data.root: damaged: {_some(unknown)} in {folder}, by their md5 sums; remove them, "
            "and --data.download true fetches them again"
        )
    return ImageData(*parts, num_classes, CIFAR_MEAN, CIFAR_STD)


def _missing(folder: Path, files: type[CIFAR10]) -> list[str]:
    return [name for name, _ in files.train_list + files.test_list if not (folder / name).is_file()]


def _unpack(root: Path, files: type[CIFAR10], download: bool) -> None:
    """Fetch the archive where that is allowed, and unpack what is missing."""
    folder, archive = root / files.base_folder, root / files.filename
    if not download and not archive.is_file():
        raise DataError(
            f"data.root: no {_some(_missing(folder, files))} in {folder}; put the folder or "
            f"{files.filename} there, or let --data.download true fetch it"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f".{files.filename}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one fetches, the others wait
            missing = _missing(folder, files)
            if not missing:
                return
            if download:
                download_url(files.url, root, files.filename, files.tgz_md5)
            elif not check_integrity(archive, files.tgz_md5):
                raise DataError(
                    f"data.root: {archive} is damaged or incomplete, by its md5 sum; remove it, "
                    "and --data.download true fetches it again"
                )
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as unpacked:
                extract_archive(archive, unpacked)
                for name in missing:  # file by file, each whole or not at all
                    os.replace(Path(unpacked, files.base_folder, name), folder / name)
    except DataError:
        raise
    # a RuntimeError is how torchvision reports a download with another md5 sum
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        task = (
            f"data.download: cannot fetch {files.url}" if download else "data.root: cannot unpack"
        )
        raise DataError(f"{task} into {root}: {_line(error)}") from error


def _read_batch(path: Path, labels: str, num_classes: int) -> tuple[np.ndarray, list[int], str]:
    """A pickled batch -> images uint8 [N, 32, 32, 3], N class indices, md5 sum of the file."""
    try:
        raw = path.read_bytes()
        entry = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
        data, targets = entry["data"], entry[labels]
        if data.dtype != np.uint8 or data.shape != (len(targets), 3 * 32 * 32):
            raise ValueError(f"{data.dtype} {data.shape} for {len(targets)} labels")
        if not all(type(target) is int and 0 <= target < num_classes for target in targets):
            raise ValueError(f"labels other than 0 to {num_classes - 1}")
    except Exception as error:  # on damaged files, pickle raises anything
        raise DataError(f"data.root: {path} is damaged or unreadable: {_line(error)}") from error
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    return np.ascontiguousarray(images), list(targets), md5


_rebuild_array = np.empty(0).__reduce__()[0]  # NumPy has moved it before
_ARRAYS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _rebuild_array,
    ("numpy._core.multiarray", "_reconstruct"): _rebuild_array,
    ("_codecs", "encode"): codecs.encode,  # bytes, as Python 3 writes them for Python 2
}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds lists, dictionaries and NumPy arrays; other pickles might run a stranger's code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not just arrays")
        return _ARRAYS[module, name]


def _root(config: DataConfig, content: str, must_exist: bool = True) -> Path:
    if config.root is None:
        raise DataError(f"data.root: must be the folder with {content}, is null")
    root = Path(config.root).expanduser()
    if must_exist and not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; expected is one with {content}")
    return root


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
