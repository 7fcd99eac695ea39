"""CIFAR10 and CIFAR100, from the files they are distributed as."""

import codecs
import hashlib
import io
import pickle
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from qkformer.data.source import DataConfig, DataError, ImageData, data_root
from qkformer.files import one_at_a_time, publish
from qkformer.text import one_line, some_of

# CIFAR10's; the published runs normalise CIFAR100 with them too
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)  # fmt: skip
CIFAR_SIZES = (50_000, 10_000)  # training and test images of either


def cifar10(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """60,000 RGB images of 32 x 32 pixels in 10 classes: data.root/cifar-10-batches-py.

    Files in the same format with fewer or more images are read too, with a warning. With the
    number of images that CIFAR10 has, they must be the published files.

    Raises:
        DataError: files that are missing, damaged or not the published ones.
    """
    return _cifar(config, CIFAR10, "labels", CIFAR10_CLASSES)


def cifar100(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """As cifar10, with 100 classes: data.root/cifar-100-python."""
    return _cifar(config, CIFAR100, "fine_labels", CIFAR100_CLASSES)


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


def _cifar(
    config: DataConfig, files: type[CIFAR10], labels: str, names: tuple[str, ...]
) -> ImageData:
    root = data_root(
        config, f"{files.base_folder}/ or {files.filename}", must_exist=not config.download
    )
    folder = root / files.base_folder
    if _missing(folder, files):
        _unpack(root, files, config.download)
    parts, unknown = [], []
    for listed in (files.train_list, files.test_list):
        arrays, targets = [], []
        for name, md5 in listed:
            array, classes, found = _read_batch(folder / name, labels, len(names))
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
            f"data.root: damaged: {some_of(sorted(unknown))} in {folder}, by their md5 sums; "
            "remove them, and --data.download true fetches them again"
        )
    listed = folder / files.meta["filename"]
    if listed.is_file():  # data in the same format may have classes of their own
        names = _read_names(listed, files.meta["key"], len(names))
    return ImageData(*parts, len(names), CIFAR_MEAN, CIFAR_STD, names)


def _missing(folder: Path, files: type[CIFAR10]) -> list[str]:
    return [name for name, _ in files.train_list + files.test_list if not (folder / name).is_file()]


def _unpack(root: Path, files: type[CIFAR10], download: bool) -> None:
    """Fetch the archive where that is allowed, and unpack what is missing."""
    folder, archive = root / files.base_folder, root / files.filename
    if not download and not archive.is_file():
        missing = some_of(sorted(_missing(folder, files)))
        raise DataError(
            f"data.root: no {missing} in {folder}; put the folder or "
            f"{files.filename} there, or let --data.download true fetch it"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root / f".{files.filename}.lock", f"unpacks {archive}"):
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
                    publish(Path(unpacked, files.base_folder, name), folder / name)
    except DataError:
        raise
    # a RuntimeError is how torchvision reports a download with another md5 sum
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        task = (
            f"data.download: cannot fetch {files.url}" if download else "data.root: cannot unpack"
        )
        raise DataError(f"{task} into {root}: {one_line(error)}") from error


def _read_batch(path: Path, labels: str, num_classes: int) -> tuple[np.ndarray, list[int], str]:
    """A pickled batch -> images uint8 [N, 32, 32, 3], N class indices, md5 sum of the file."""
    with _blaming(path):
        raw = path.read_bytes()
        entry = _unpickled(raw)
        data, targets = entry["data"], entry[labels]
        if data.dtype != np.uint8 or data.shape != (len(targets), 3 * 32 * 32):
            raise ValueError(f"{data.dtype} {data.shape} for {len(targets)} labels")
        if not all(type(target) is int and 0 <= target < num_classes for target in targets):
            raise ValueError(f"labels other than 0 to {num_classes - 1}")
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    return np.ascontiguousarray(images), list(targets), md5


def _read_names(path: Path, key: str, num_classes: int) -> tuple[str, ...]:
    with _blaming(path):
        names = tuple(_unpickled(path.read_bytes())[key])
        if len(names) != num_classes or not all(type(name) is str for name in names):
            raise ValueError(f"{key} are not {num_classes} names")
    return names


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # on damaged files, pickle raises anything
        raise DataError(f"data.root: {path} is damaged or unreadable: {one_line(error)}") from error


def _unpickled(raw: bytes) -> Any:
    return _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()


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
