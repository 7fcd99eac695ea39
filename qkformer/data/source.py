"""What a data set is: the configuration it is given and the two forms it can take."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch.utils.data import Dataset

EVENTS = ("dvs128-gesture", "cifar10-dvs", "digits-dvs")


@dataclass
class DataConfig:
    """Which data to train and test on, and how they are loaded.

    Args:
        name: The data set: imagenet, cifar10, cifar100, dvs128-gesture, cifar10-dvs, digits or
            digits-dvs.
        root: Folder of the data set; null for digits and digits-dvs, which come with
            scikit-learn.
        download: Whether to fetch what is not there (cifar10, cifar100).
        image_size: Height and width, in pixels, at which images or frames enter the model.
        batch_size: Samples per batch, in every process; in training and in testing.
        test_batch_size: Samples per batch in testing; null for batch_size.
        split: Of cifar10-dvs, which has none of its own. released: the last 10 % of each class are
            the test set; tebn: the first 100. Accuracies on the two cannot be compared.
        val_fraction: Share of the training samples held out, on which the best epoch is then
            chosen; 0 chooses it on the test set, as the published numbers were.
        crop_pct: Test images: the shorter side is resized to image_size / crop_pct and the centre
            cut out; null for the published rule, 0.875 up to 224 pixels and 1 above.
        mean: Images: of each channel, scaled to 0..1, what is subtracted; null for the data set's.
        std: Likewise, by what is divided then.
        on_damaged: A sample that cannot be read stops the run (error) or is left out, counted and
            reported (skip).
        workers: Processes that load data, for every training process; 0 loads in the latter, null
            takes its share of the CPU cores, 16 at most.
    """

    name: str
    image_size: int
    batch_size: int
    test_batch_size: int | None = None
    root: str | None = None
    download: bool = False
    split: Literal["released", "tebn"] | None = None
    val_fraction: float = 0.0
    crop_pct: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    on_damaged: Literal["error", "skip"] = "error"
    workers: int | None = 0

    def __post_init__(self) -> None:
        for key in ("image_size", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if self.evaluation_batch_size < 1:
            raise ValueError(f"test_batch_size: must be at least 1, got {self.test_batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers: must be 0 or more, got {self.workers}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: must be in 0 <= value < 1, got {self.val_fraction}")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct: must be in 0 < value <= 1, got {self.crop_pct}")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std: must all be above 0, got {list(self.std)}")
        self._check_that_every_key_acts()

    @property
    def evaluation_batch_size(self) -> int:
        """Samples per batch in testing, which under ssa="original" is part of the result."""
        return self.batch_size if self.test_batch_size is None else self.test_batch_size

    def _check_that_every_key_acts(self) -> None:
        if self.download and self.name not in ("cifar10", "cifar100"):
            raise ValueError(f"download: only cifar10 and cifar100 can be fetched, not {self.name}")
        for key in ("crop_pct", "mean", "std"):
            if getattr(self, key) is not None and self.name in EVENTS:
                raise ValueError(f"{key}: acts on images only, {self.name} has event frames")
        if self.split is not None and self.name != "cifar10-dvs":
            raise ValueError(f"split: only cifar10-dvs has a choice, {self.name} has one split")


class DataError(RuntimeError):
    """Data that is missing or not as it should be; the message is one line."""


@dataclass(frozen=True)
class ImageData:
    """A data set of images, split into training and test.

    Attributes:
        train: Yields (image, class index); an image is a PIL image or uint8 [C, H, W], of any size.
            None where a source was asked for nothing but its test images.
        test: Likewise.
        num_classes: Number of classes.
        mean: Per channel, of images scaled to 0..1; one value per input channel.
        std: Likewise.
        class_names: By class index; None for numbers.
    """

    train: Dataset | None
    test: Dataset
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None

    @property
    def in_chans(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class EventData:
    """A data set of event recordings as frames, split into training and test.

    Attributes:
        train: Yields (frames, class index); frames are event counts, int16 [T, 2, H, W]. None where
            a source was asked for nothing but its test samples.
        test: Likewise.
        num_classes: Number of classes.
        size: Height and width of the frames as stored, in pixels.
        class_names: By class index; None for numbers.
    """

    train: Dataset | None
    test: Dataset
    num_classes: int
    size: int
    class_names: tuple[str, ...] | None = None

    in_chans: ClassVar[int] = 2  # events of either polarity


def data_root(config: DataConfig, content: str, *, must_exist: bool = True) -> Path:
    """The folder that `data.root` names.

    Args:
        content: What is expected in it, for the error.

    Raises:
        DataError: it is null, or there is no such folder.
    """
    if config.root is None:
        raise DataError(f"data.root: must be the folder with {content}, is null")
    root = Path(config.root).expanduser().absolute()
    if must_exist and not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; expected is one with {content}")
    return root


def frames_per_recording(T: int | None, name: str) -> int:
    """T, which event data cannot do without.

    Args:
        name: The data set, for the error.

    Raises:
        DataError: it is None, or below 1.
    """
    if T is None or T < 1:
        raise DataError(f"model.T: {name} needs a number of frames, 1 or more, got {T}")
    return T
