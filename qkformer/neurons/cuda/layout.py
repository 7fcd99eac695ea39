"""Memory layout of [N, C, H, W]."""

import torch
from torch import Tensor


def channels_last(y: Tensor) -> bool:
    """Whether a dense [N, C, H, W] has its channels innermost in memory, and only so."""
    return not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)


def dense(y: Tensor) -> Tensor:
    """``y`` itself if it is contiguous or channels last, else a contiguous copy."""
    return y if channels_last(y) else y.contiguous()


def like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` in the memory layout of the dense ``y``."""
    if channels_last(y):
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def empty_outputs(y: Tensor, steps: int, repeated: bool, pool: bool, splits: int) -> list[Tensor]:
    """Uninitialised spikes for ``y``, in its layout, or for that many shares of its channels."""
    n, c, h, w = y.shape
    shape = (
        n * steps if repeated else n,
        c // splits,
        (h + 1) // 2 if pool else h,
        -(-w // 2) if pool else w,
    )
    layout = torch.channels_last if channels_last(y) else torch.contiguous_format
    options = dict(dtype=y.dtype, device=y.device, memory_format=layout)
    return [torch.empty(shape, **options) for _ in range(splits)]
