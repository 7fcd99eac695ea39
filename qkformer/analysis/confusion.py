"""Which classes are taken for which."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qkformer.analysis.measure import World
from qkformer.data.source import DataError


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
