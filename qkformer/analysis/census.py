"""What a model does besides layers, attentions and neurons: counted, so that it can be named."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
POOLS = (aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.max_pool2d)
NORMS = (aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training)


class Census(TorchDispatchMode):
    """Elements of residual sums, pools and BatchNorms of the calls in its ``with`` block.

    Attributes:
        counting: whether a block is open.
        inside: neurons whose steps are running, which are left out.
    """

    def __init__(self):
        super().__init__()
        self.counting, self.inside = False, 0
        self.elements = dict.fromkeys(("BatchNorm, folded", "residual additions", "pooling"), 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.inside:
            packet = func.overloadpacket
            result = out[0] if isinstance(out, tuple) else out
            if packet in POOLS:
                self.elements["pooling"] += result.numel()
            elif packet in NORMS:
                self.elements["BatchNorm, folded"] += result.numel()
            elif func in (aten.add.Tensor, aten.add_.Tensor) and _like(args, result):
                self.elements["residual additions"] += result.numel()
        return out

    def divide(self, samples: int) -> None:
        """Make the counts those of one sample of so many."""
        self.elements = {name: count // samples for name, count in self.elements.items()}


def _like(args: tuple, result: torch.Tensor) -> bool:
    return all(isinstance(a, torch.Tensor) and a.shape == result.shape for a in args[:2])
