"""What a trained model has to be told of a new sample, and what its classes are called.

Kept with the weights, it takes the place of the data set: in ``qkformer.predict`` and on the hub.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import nn

from qkformer.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR_MEAN, CIFAR_STD
from qkformer.data.event_formats import GESTURES
from qkformer.data.event_preparation import SIZE
from qkformer.data.event_transforms import EventFrames
from qkformer.data.image_transforms import ImageTransform, Normalise, test_transform
from qkformer.data.source import DataConfig, DataError, EventData, ImageData


@dataclass(frozen=True)
class Inputs:
    """How samples become the input of a model, and the names of its classes.

    Attributes:
        class_names: By class index.
        mean, std: Of images scaled to 0..1, per channel; None for event frames.
        stored: Height and width of event frames as stored, in pixels; None for images.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stored: int | None = None

    @property
    def in_chans(self) -> int:
        return EventData.in_chans if self.stored else len(self.mean)

    def transform(self, config: DataConfig) -> ImageTransform | None:
        """An image as loaded -> uint8 [C, S, S]; None for event frames, which stay as they are."""
        return None if self.stored else test_transform(config)

    def prepare(self, config: DataConfig) -> nn.Module:
        """A batch of what `transform` returns, on the device -> float input of the model.

        Raises:
            DataError: event frames cannot be summed to the configured size.
        """
        if self.stored:
            return EventFrames(self.stored, config.image_size)
        return Normalise(self.mean, self.std)

    def normalised_as(self, config: DataConfig) -> "Inputs":
        """With the configured mean and std, where there are any.

        Raises:
            DataError: they are of another number of channels.
        """
        given = {key: each for key in ("mean", "std") if (each := getattr(config, key)) is not None}
        for key, value in given.items():
            if len(value) != self.in_chans:
                raise DataError(
                    f"data.{key}: is of {len(value)} channels, {config.name} has {self.in_chans}"
                )
        return replace(self, **given)


def inputs_of(source: ImageData | EventData) -> Inputs:
    """Of a data set that is there."""
    names = source.class_names or tuple(map(str, range(source.num_classes)))
    if isinstance(source, EventData):
        return Inputs(names, stored=source.size)
    return Inputs(names, source.mean, source.std)


KNOWN: dict[str, Callable[[], Inputs]] = {
    "imagenet": lambda: Inputs(
        tuple(ImageNetInfo("imagenet-1k").label_names()),
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
    ),
    "cifar10": lambda: Inputs(CIFAR10_CLASSES, CIFAR_MEAN, CIFAR_STD),
    "cifar100": lambda: Inputs(CIFAR100_CLASSES, CIFAR_MEAN, CIFAR_STD),
    "dvs128-gesture": lambda: Inputs(GESTURES, stored=SIZE),
    "cifar10-dvs": lambda: Inputs(CIFAR10_CLASSES, stored=SIZE),
}


def known_inputs(name: str) -> Inputs | None:
    """Of a published data set that need not be there, as for published weights; else None."""
    return KNOWN[name]() if name in KNOWN else None


def descriptions(class_names: tuple[str, ...]) -> dict[str, str]:
    """In words, of those classes that are named as ImageNet's folders."""
    known = ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True)
    return {name: known[name] for name in class_names if name in known}
