"""Writers of tiny image data sets in the formats of the real ones.

Every class has its own coarse pattern under noise, so that a model can learn to tell them apart.
"""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def write_cifar10(
    root: Path, per_class_train: int = 10, per_class_test: int = 2, seed: int = 0
) -> Path:
    """data_batch_1 to 5, test_batch, batches.meta; returns their folder."""
    folder = root / "cifar-10-batches-py"
    train, labels = cifar_images(per_class_train, 10, seed)
    for i in range(5):
        _write_batch(folder / f"data_batch_{i + 1}", train[i::5], {"labels": labels[i::5]})
    test, labels = cifar_images(per_class_test, 10, seed + 1)
    _write_batch(folder / "test_batch", test, {"labels": labels})
    _write_pickle(folder / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    return folder


def write_cifar100(
    root: Path, per_class_train: int = 2, per_class_test: int = 1, seed: int = 0
) -> Path:
    """train, test, meta; returns their folder."""
    folder = root / "cifar-100-python"
    for part, per_class in (("train", per_class_train), ("test", per_class_test)):
        images, fine = cifar_images(per_class, 100, seed + (part == "test"))
        coarse = [label // 5 for label in fine]
        _write_batch(folder / part, images, {"fine_labels": fine, "coarse_labels": coarse})
    _write_pickle(folder / "meta", {"fine_label_names": [f"class {i}" for i in range(100)]})
    return folder


def write_imagenet(
    root: Path,
    classes: int = 3,
    train: int = 8,
    val: int = 4,
    size: tuple[int, int] = (48, 40),
    seed: int = 0,
) -> Path:
    """train/<class>/ and val/<class>/ with images of `size` (width, height), every fourth a PNG;
    returns root."""
    rng = np.random.default_rng(seed)
    for part, per_class in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / part / f"n{label + 1:08d}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = Image.fromarray(_image(label, *size, rng))
                if i % 4 == 3:
                    image.save(folder / f"{folder.name}_{i}.png")
                else:
                    image.save(folder / f"{folder.name}_{i}.JPEG", "JPEG", quality=90)
    return root


def cifar_images(per_class: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Images uint8 [N, 32, 32, 3] in mixed order, and their class indices."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class)).tolist()
    return np.stack([_image(label, 32, 32, rng) for label in labels]), labels


def _image(label: int, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    pattern = np.random.default_rng(label).integers(40, 216, (4, 4, 3))
    image = pattern.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


def _write_batch(path: Path, images: np.ndarray, labels: dict[str, list[int]]) -> None:
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    files = [f"{i}.png" for i in range(len(images))]
    _write_pickle(path, {"batch_label": path.name, "data": data, "filenames": files, **labels})


def _write_pickle(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
