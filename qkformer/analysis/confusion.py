"""Which classes are taken for which."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qkformer.analysis.measure import World
from qkformer.data.event_formats import CIFAR10_CLASSES
from qkformer.data.source import DataError

# DVS128 Gesture's gesture_mapping.csv: of folder 0, 1, ..; a class index is the place of the
# folder's name in alphabetical order.
_GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter-clockwise", "left arm clockwise", "left arm counter-clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
CLASSES = {
    "cifar10": CIFAR10_CLASSES,
    "cifar10-dvs": CIFAR10_CLASSES,
    "dvs128-gesture": tuple(_GESTURES[folder] for folder in sorted(range(11), key=str)),
}


def class_names(data: str, num_classes: int) -> list[str]:
    """Names where a data set has them, else numbers."""
    names = CLASSES.get(data, ())
    return list(names) if len(names) == num_classes else [str(i) for i in range(num_classes)]


@torch.no_grad()
def confusion_matrix(
    model: Callable[[Tensor], Tensor] | nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    world: World | None = None,
) -> Tensor:
    """Samples by true class (rows) and predicted class (columns), int64; over all processes.

    Raises:
        DataError: there is no batch.
    """
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    for x, labels in batches:
        predicted = model(x).argmax(1).cpu()
        counts += torch.bincount(labels.cpu() * num_classes + predicted, minlength=len(counts))
    counts = counts if world is None else world.total(counts)
    if not counts.any():
        raise DataError("nothing to count: there is no batch in the data")
    return counts.view(num_classes, num_classes)
