"""Which classes are taken for which."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qkformer.analysis.measure import World
from qkformer.data.source import DataError

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck")  # fmt: skip
CLASSES = {
    "cifar10": _CIFAR10,
    "cifar10-dvs": _CIFAR10,
    "dvs128-gesture": (  # by folder: 0, 1, 10, 2, ...
        "hand clapping", "right hand wave", "other gestures", "left hand wave",
        "right arm clockwise", "right arm counter-clockwise", "left arm clockwise",
        "left arm counter-clockwise", "arm roll", "air drums", "air guitar",
    ),
}  # fmt: skip


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
