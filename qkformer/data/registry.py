"""From a name in the configuration to what the training loop takes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.cifar import cifar10, cifar100
from qkformer.data.digits import digits
from qkformer.data.digits_dvs import digits_dvs
from qkformer.data.event_transforms import EventAugmentation
from qkformer.data.events import cifar10_dvs, dvs128_gesture
from qkformer.data.image_transforms import ImageAugmentation, training_transform
from qkformer.data.imagenet import imagenet
from qkformer.data.inputs import Inputs, inputs_of
from qkformer.data.samples import Samples, held_out
from qkformer.data.source import DataConfig, EventData, ImageData

# A data set is a function of the `data` section and, by keyword, of T (frames per recording, which
# images do not need) and `training` (False: the training samples may be None).
DATASETS: dict[str, Callable[..., ImageData | EventData]] = {
    "imagenet": imagenet,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "dvs128-gesture": dvs128_gesture,
    "cifar10-dvs": cifar10_dvs,
    "digits": digits,
    "digits-dvs": digits_dvs,
}


@dataclass(frozen=True)
class Data:
    """Samples as the loaders read them, and what is done to a batch on the device.

    Attributes:
        train: Yields uint8 [C, H, W] or int16 [T, C, H, W], and a class index; None where only
            testing was asked for.
        validation: Held-out training samples, treated as test samples; None without any.
        test: Likewise.
        augment: A training batch on the device, its class indices [B] and the epoch -> float input
            of the model, and class indices [B] or probabilities [B, classes].
        prepare: A test batch on the device -> float input of the model.
        inputs: What of this goes with a trained model, and the names of the classes.
    """

    train: Samples | None
    validation: Samples | None
    test: Samples
    augment: nn.Module
    prepare: nn.Module
    inputs: Inputs

    @property
    def num_classes(self) -> int:
        return len(self.inputs.class_names)

    @property
    def in_chans(self) -> int:
        return self.inputs.in_chans


def load_data(
    config: DataConfig,
    augmentation: AugmentationConfig,
    T: int | None = None,
    *,
    training: bool = True,
) -> Data:
    """The data set that `config.name` names, with its augmentation.

    Args:
        T: Frames per sample, for data of events.
        training: Whether training samples are wanted; ImageNet's need not be there otherwise.

    Raises:
        DataError: data missing or not as expected, or an augmentation that does not exist for this
            kind of data; one line that names the key to change.
    """
    source = DATASETS[config.name](config, T=T, training=training)
    inputs = inputs_of(source).normalised_as(config)
    if isinstance(source, EventData):
        train_transform = None
        augment = EventAugmentation(
            augmentation, source.size, config.image_size, source.num_classes
        )
    else:
        train_transform = training_transform(augmentation, config, inputs.mean)
        augment = ImageAugmentation(augmentation, inputs.mean, inputs.std, source.num_classes)
    still_transform = inputs.transform(config)
    train = validation = None
    if training:
        kept, held = held_out(source.train, config.val_fraction)
        train = Samples(source.train, train_transform, kept)
        validation = Samples(source.train, still_transform, held) if len(held) else None
    return Data(
        train=train,
        validation=validation,
        test=Samples(source.test, still_transform),
        augment=augment,
        prepare=inputs.prepare(config),
        inputs=inputs,
    )
