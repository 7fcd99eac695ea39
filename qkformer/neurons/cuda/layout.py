"""Memory layout of [N, C, H, W]."""

import torch
from torch import Tensor


def channels_last(y: Tensor) -> bool:
    """Whether a dense [N, C, H, W] has its channels innermost in memory, and only so."""
    return not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)


def dense(y: Tensor) -> Tensor:
    """``y`` itself if it is contiguous or channels last, else a contiguous copy."""
    return y if channels_last(y) else y.contiguous()


def dense_of_heads(y: Tensor, heads: int) -> Tensor:
    """:func:`dense`, channels last where there are several heads."""
    return y.contiguous(memory_format=torch.channels_last) if heads > 1 else dense(y)


def like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` in the memory layout of the dense ``y``."""
    if channels_last(y):
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def empty_outputs(
    y: Tensor, steps: int, repeated: bool, pool: bool, splits: int, heads: int = 1
) -> list[Tensor]:
    """Uninitialised spikes for ``y``, in its layout, or for that many shares of its channels.

    Of several heads a share is [T * B, heads, H * W, C / splits / heads], contiguous.
    """
    n, c, h, w = y.shape
    rows = n * steps if repeated else n
    if heads > 1:
        shape = rows, heads, h * w, c // splits // heads
        return [y.new_empty(shape) for _ in range(splits)]
    shape = (rows, c // splits, (h + 1) // 2 if pool else h, -(-w // 2) if pool else w)
    layout = torch.channels_last if channels_last(y) else torch.contiguous_format
    options = dict(dtype=y.dtype, device=y.device, memory_format=layout)
    return [torch.empty(shape, **options) for _ in range(splits)]
