"""Mean and variance of each channel, in two or three launches."""

import numpy as np
import torch
from torch import Tensor

from qkformer.neurons.cuda import launch
from qkformer.neurons.cuda.layout import channels_last, parts, pointer
from qkformer.neurons.cuda.loader import LAUNCHERS, Variant
from qkformer.neurons.reference import membrane_dtype

PACKS_PER_THREAD = 32
COMBINED = 64  # partial results per channel that the last launch takes


def mean_variance_invstd(y: Tensor, eps: float, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``ops.batch_statistics`` says, of each channel of a dense [N, C, H, W].

    [C] each, in float32, or float64 for such a ``y``.
    """
    count = y.numel() // max(1, y.shape[1]) * repeats
    unbias = count / max(1, count - 1)
    if y.numel() == 0 or y.numel() >= 2**31:  # more than the kernel's indices hold
        variance, mean = torch.var_mean(y.to(membrane_dtype(y.dtype)), (0, 2, 3), correction=0)
        return mean, variance * unbias, (variance + eps).rsqrt()
    channels, height, width = y.shape[1:]
    last = channels_last(y) or height * width == 1
    inner = 1 if last else height * width
    run = channels if last else inner
    vec = next(v for v in (4, 1) if run % v == 0 and y.data_ptr() % (v * y.element_size()) == 0)
    groups = channels // vec if last else channels
    least = PACKS_PER_THREAD * channels // groups
    split = parts(y.numel() // vec // groups, groups, least, launch.REDUCE_THREADS)
    threads = groups * split

    real = membrane_dtype(y.dtype)
    number, flag = (np.float64 if real == torch.float64 else np.float32), np.int32(last)
    variant = Variant("statistics", y.dtype, "IF", 1, vec)

    def run_kernel(kernel: str, threads: int, tensors: tuple, *sizes: np.number | int) -> None:
        sizes = (np.uint32(size) if isinstance(size, int) else size for size in sizes)
        args = [*map(pointer, tensors), *sizes]
        LAUNCHERS[y.device.type].launch(kernel, threads, args, variant=variant, device=y.device)

    partial = y.new_empty((3, channels * split), dtype=real)
    sizes = (y.numel() // vec, split, threads, channels, inner)
    run_kernel("moments", threads, (y, partial), *sizes)
    if split > COMBINED:
        fewer = y.new_empty((3, channels * COMBINED), dtype=real)
        sizes = (split, COMBINED, channels, flag)
        run_kernel("combine", channels * COMBINED, (partial, fewer), *sizes)
        partial, split = fewer, COMBINED
    results = tuple(y.new_empty(channels, dtype=real) for _ in range(3))
    sizes = (split, channels, flag, number(eps), number(unbias))
    run_kernel("finish", channels, (partial, *results), *sizes)
    return results
