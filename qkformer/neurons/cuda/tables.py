"""BatchNorm's tables, [C] in a row: the map in front of the neuron; gradients of its parameters."""

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from qkformer.neurons.cuda import launch, loader
from qkformer.neurons.cuda.launch import pointer, three
from qkformer.neurons.cuda.loader import Variant

COLUMNS = 32  # channels of a block that puts sums together, in tables.cu
NORM_ROWS = 4  # center, scale, shift, 1 / sqrt(variance + eps)
# of bias, weight, 1 / tau and the convolution's bias; means of dz, and of dz * (y - center) over
# the variance
GRADIENT_ROWS = 6
_STRUCTS = {  # TableArguments in tables.cu
    torch.float32: struct.Struct("15P4f3I0P"),
    torch.float64: struct.Struct("15P4d3I0P"),
}


def batch_norm(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    running: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    eps: float,
    momentum: float | None,
    repeats: int,
) -> Tensor:
    """What ``ops.batch_norm`` says, of a dense ``y``."""
    partial = launch.moments(y)
    channels = y.shape[1]
    table = partial.new_empty((NORM_ROWS, channels))
    values = count(y) * repeats
    unbias = values / max(1, values - 1)
    reals = (eps, unbias, -1.0 if momentum is None else momentum, 0.0)
    tensors = (partial, table, weight, bias, conv_bias, None)
    _run("batch_norm", tensors, running, reals, partial.shape[1], channels, -(-channels // COLUMNS))
    return table


def fixed_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    running: tuple[Sequence[Tensor], Sequence[Tensor]],
    eps: float,
) -> Tensor:
    """What ``ops.fixed_norm`` says."""
    mean = running[0]
    channels = len(mean) * mean[0].numel()
    table = mean[0].new_empty((NORM_ROWS, channels))
    tensors = (None, table, weight, bias, conv_bias, None)
    blocks = -(-channels // loader.BLOCK)
    _run("fixed_norm", tensors, (*running, ()), (eps, 0.0, 0.0, 0.0), 0, channels, blocks)
    return table


def gradients(partial: Tensor, table: Tensor | None, count: int) -> Tensor:
    """[GRADIENT_ROWS, C] from the parts of sums over dz.

    Args:
        partial: [3, parts, C].
        table: of the map that dz passed, None for the identity.
        count: values of a channel behind its statistics; 0 where they are fixed.
    """
    _, parts, channels = partial.shape
    made = partial.new_empty((GRADIENT_ROWS, channels))
    tensors = (partial, made, None, None, None, table)
    reals = (0.0, 0.0, 0.0, 1 / count if count else 0.0)
    _run("gradients", tensors, ((), (), ()), reals, parts, channels, -(-channels // COLUMNS))
    return made


def count(y: Tensor) -> int:
    """Values of a channel of [N, C, H, W]."""
    return math.prod((y.shape[0], *y.shape[2:]))


def _run(
    kernel: str,
    tensors: Sequence[Tensor | None],
    running: Sequence[Sequence[Tensor]],
    reals: Sequence[float],
    parts: int,
    channels: int,
    blocks: int,
) -> None:
    table = tensors[1]
    shares = [p for buffers in running for p in three(buffers)]
    per_share = channels // max(1, len(running[0]))
    argument = _STRUCTS[table.dtype].pack(
        *map(pointer, tensors), *shares, *reals, parts, channels, per_share
    )
    variant, device = Variant("tables", table.dtype), table.device
    loader.LAUNCHERS[device.type].launch(kernel, blocks, argument, variant, device)
