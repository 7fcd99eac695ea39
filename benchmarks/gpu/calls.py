"""Our operators as a training step calls them, to be called again by themselves."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Like(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """What it takes in memory; a dimension that is expanded is there once."""
        sizes = (n for n, stride in zip(self.shape, self.stride, strict=True) if stride)
        return math.prod(sizes) * self.dtype.itemsize

    def made(self, device: torch.device) -> Tensor:
        """Activations are random, vectors (BatchNorm's, of time constants) ones."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        extent = last + 1 if all(self.shape) else 0
        values = torch.zeros(extent, dtype=self.dtype, device=device)
        if self.dtype.is_floating_point:
            values = values.normal_() if len(self.shape) >= 4 else values.fill_(1)
        return values.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """An operator and its arguments, with ``Like`` in place of tensors."""

    operation: torch._ops.OpOverload
    args: tuple

    def on(self, device: torch.device) -> Callable[[], object]:
        """The same call on new tensors; it returns what the operator returns."""
        args = _made(self.args, device)
        return lambda: self.operation(*args)

    @property
    def read(self) -> int:
        """Bytes of all inputs."""
        return bytes_of(self.args)

    @property
    def given(self) -> dict[str, Any]:
        """Arguments by name."""
        names = (argument.name for argument in self.operation._schema.arguments)
        return dict(zip(names, self.args, strict=False))

    def least(self, kernel: str, written: int) -> int | None:
        """Bytes that one of its kernels must move; None for those that only finish sums.

        Args:
            kernel: Its name in the source.
            written: Bytes of the call's outputs.
        """
        if kernel in ("moments", "reduce"):
            return self.read
        if kernel in ("forward", "pooled_forward", "backward", "qk_mask", "qk_mask_backward"):
            return self.read + written
        if kernel not in ("pooled_backward", "pooled_gather"):
            return None
        y = self.given["y"]  # between the two, of each window its gradient and a byte: its place
        n, c, h, w = y.shape
        windows = n * c * -(-h // 2) * -(-w // 2) * (y.dtype.itemsize + 1)
        return windows + (self.read if kernel == "pooled_backward" else y.bytes + written)

    @property
    def shape(self) -> str:
        """[C, H, W] of the input."""
        return ",".join(map(str, next(_likes(self.args)).shape[1:]))

    def __str__(self) -> str:
        given = self.given
        kept = [key for key in ("pool", "repeated", "residual") if given.get(key)]
        kept += [f"splits={given['splits']}"] if given.get("splits", 1) > 1 else []
        kept += [f"heads={given['heads']}"] if given.get("heads", 1) != 1 else []
        return ",".join(kept)


class Calls(TorchDispatchMode):
    """Keeps the calls of our operators inside: ``counted[call]``."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[Call] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "qkformer":
            self.counted[Call(operation, described(args))] += 1
        return operation(*args, **(kwargs or {}))


def described(value: object) -> object:
    """Tensors as ``Like``, lists as tuples: something that can be compared."""
    if isinstance(value, Tensor):
        return Like(tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(described, value)) if isinstance(value, list | tuple) else value


def bytes_of(value: object) -> int:
    """Of all tensors in what ``described`` gave."""
    return sum(like.bytes for like in _likes(value))


def _likes(value: object) -> Iterator[Like]:
    if isinstance(value, Like):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _likes(each)


def _made(value: object, device: torch.device) -> object:
    if isinstance(value, Like):
        return value.made(device)
    return tuple(_made(each, device) for each in value) if isinstance(value, tuple) else value
