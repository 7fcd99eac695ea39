"""Mean and variance of each channel, in three launches."""

import numpy as np
import torch
from torch import Tensor

from qkformer.neurons.cuda import launch
from qkformer.neurons.cuda.layout import channels_last, parts, pointer
from qkformer.neurons.cuda.loader import LAUNCHERS, Variant
from qkformer.neurons.reference import membrane_dtype

PACKS_PER_THREAD = 32
COMBINED = 64  # partial results per channel after the second launch


def mean_invstd(y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel of a dense [N, C, H, W], [C] each.

    The variance is that of the batch (biased), in float32, or float64 for such a ``y``.
    """
    if y.numel() == 0 or y.numel() >= 2**31:  # more than the kernel's indices hold
        variance, mean = torch.var_mean(y.to(membrane_dtype(y.dtype)), (0, 2, 3), correction=0)
        return mean, (variance + eps).rsqrt()
    channels, height, width = y.shape[1:]
    last = channels_last(y) or height * width == 1
    inner = 1 if last else height * width
    run = channels if last else inner
    vec = next(v for v in (4, 1) if run % v == 0 and y.data_ptr() % (v * y.element_size()) == 0)
    groups = channels // vec if last else channels
    least = PACKS_PER_THREAD * channels // groups
    split = parts(y.numel() // vec // groups, groups, least, launch.REDUCE_THREADS)
    combined = min(COMBINED, split)

    real = membrane_dtype(y.dtype)
    partial = y.new_empty((3, channels * split), dtype=real)
    fewer = y.new_empty((3, channels * combined), dtype=real)
    mean, invstd = (y.new_empty(channels, dtype=real) for _ in range(2))
    variant = Variant("statistics", y.dtype, "IF", 1, vec)

    def run_kernel(kernel: str, threads: int, tensors: tuple, *sizes: int, tail: tuple = ()):
        args = [*map(pointer, tensors), *map(np.uint32, sizes), *tail]
        LAUNCHERS[y.device.type].launch(kernel, threads, args, variant=variant, device=y.device)

    threads, flag = groups * split, np.int32(last)
    run_kernel("moments", threads, (y, partial), y.numel() // vec, split, threads, channels, inner)
    run_kernel(
        "combine", channels * combined, (partial, fewer), split, combined, channels, tail=(flag,)
    )
    scalar = np.float64 if real == torch.float64 else np.float32
    tail = (flag, scalar(eps))
    run_kernel("finish", channels, (fewer, mean, invstd), combined, channels, tail=tail)
    return mean, invstd
