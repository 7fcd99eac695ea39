"""ImageNet and whatever is sorted into folders like it."""

import os
from pathlib import Path

import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file

from qkformer.data.samples import LabelledPaths
from qkformer.data.source import DataConfig, DataError, ImageData, data_root
from qkformer.text import one_line, some_of


def imagenet(config: DataConfig, *, T: int | None = None, training: bool = True) -> ImageData:
    """Folders of images: data.root/train/<class>/*.JPEG and data.root/val/<class>/*.JPEG.

    The classes are the folders, in alphabetical order; a part of ImageNet has as many as it has.

    Args:
        training: False leaves train/ alone, which then need not be there: a million files take a
            while to list.

    Raises:
        DataError: folders that are missing, empty or not sorted by class.
    """
    root = data_root(config, "train/<class>/*.JPEG and val/<class>/*.JPEG")
    parts = ("train", "val") if training else ("val",)
    try:
        classes = {part: set(_class_folders(root, part)) for part in parts}
        for part in parts:
            alone = classes[part] - set.intersection(*classes.values())
            if alone:
                raise DataError(
                    f"data.root: train/ and val/ in {root} differ in their class folders: "
                    f"{len(alone)} only in {part}/: {some_of(sorted(alone))}"
                )
        images = {part: _labelled_images(root / part) for part in parts}
    except OSError as error:
        raise DataError(f"data.root: {one_line(error)}") from error
    return ImageData(
        train=images.get("train"),
        test=images["val"],
        num_classes=len(classes["val"]),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        class_names=tuple(images["val"].classes),
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
            f"data.root: {len(empty)} class folders of {folder} without images: {some_of(empty)}"
        )
    images.samples = images.imgs = LabelledPaths(images.samples)
    images.targets = images.samples.labels
    return images
