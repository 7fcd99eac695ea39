"""From tensors to kernel launches: layout, packs, partial sums.

``y`` is [T * B, C, H, W] (or [B, C, H, W], repeated over time), contiguous or channels last; a
neuron alone is one with C = H = 1 and no BatchNorm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qkformer.neurons.cuda.layout import channels_last, empty_outputs, like, parts, pointer
from qkformer.neurons.cuda.loader import LAUNCHERS, Variant
from qkformer.neurons.reference import membrane_dtype

MAX_SPLITS = 3  # tensors that a kernel writes: of q, k and v
MAX_UNROLLED = 32  # time steps a kernel is specialised for; beyond, a membrane goes to memory
MAX_UNROLLED_POOLED = 8
PACK_BYTES = 16  # the most that a thread reads at once
REDUCE_THREADS = 1 << 18  # about what fills the largest GPU; each writes one partial sum
WORK_THREADS = 1 << 16  # bounds the memory of membranes beyond these steps


class Neuron(NamedTuple):
    """The neuron's constants; ``learned`` is PLIF's 1 / tau (0-dim), else ``reciprocal_tau``."""

    learned: Tensor | None
    reciprocal_tau: float | None
    v_threshold: float
    v_reset: float
    alpha: float
    surrogate: str = "sigmoid"

    @property
    def kind(self) -> str:
        if self.learned is not None:
            return "PLIF"
        return "IF" if self.reciprocal_tau is None else "LIF"


class Norm(NamedTuple):
    """BatchNorm: weight, bias, mean and 1 / sqrt(var + eps); the bias of the convolution in front
    where ``y`` is without it, though ``mean`` is not. [C] each, in the membrane's dtype."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    invstd: Tensor | None = None
    conv_bias: Tensor | None = None


@dataclass
class Call:
    """One fused operation on ``y``: everything its kernels share.

    Args:
        y: dense, see :func:`dense`.
        steps: T.
        repeated: ``y`` holds one time step that stands for all T.
        splits: that many shares of the channels leave as tensors of their own, at most MAX_SPLITS;
            not with a pool.
    """

    y: Tensor
    norm: Norm
    neuron: Neuron
    steps: int
    repeated: bool
    pool: bool
    splits: int = 1
    real: type = field(init=False)

    def __post_init__(self):
        y = self.y
        self.real = np.float64 if y.dtype == torch.float64 else np.float32
        self.last = channels_last(y)
        rows = y.shape[0] if self.repeated else y.shape[0] // self.steps
        n, (c, h, w) = rows, y.shape[1:]
        self.inputs = n * c * h * w  # of a time step
        if self.pool:
            h, w = (h + 1) // 2, (w + 1) // 2
        self.channels, self.neurons = c, n * c * h * w
        # [B, C, 1] is channels last as well, and faster taken as such
        self.inner = 1 if self.last or h * w == 1 else h * w
        self.unrolled = MAX_UNROLLED_POOLED if self.pool else MAX_UNROLLED
        if self.splits > MAX_SPLITS:
            raise ValueError(f"the kernels split channels in at most {MAX_SPLITS}: {self.splits}")
        if self.inputs >= 2**31:
            raise ValueError(
                f"the kernels index at most 2^31 - 1 values per time step, got {self.inputs}: "
                "use a smaller batch or backend='torch'"
            )

    def vec(self, *tensors: Tensor | None, run: int | None = None) -> int:
        """How many neighbours a thread can read at once: within ``run``, and aligned.

        ``run``: elements in memory that belong together; by default those that share a channel,
        or all channels of a share.
        """
        if self.pool:
            if not self.last:
                return 1
            vec = min(4, PACK_BYTES // self.y.element_size())
        elif self.steps > 16:
            return 1
        else:
            vec = 4 if self.steps <= 8 else 2
        stride = vec * self.y.element_size()
        aligned = all(t is None or t.data_ptr() % stride == 0 for t in tensors)
        if run is None:
            run = self.channels // self.splits if self.inner == 1 else self.inner
        return vec if aligned and run % vec == 0 else 1

    def launch(self, family: str, kernel: str, threads: int, args: list, vec: int = 1) -> None:
        steps = self.steps if self.steps <= self.unrolled else 0
        neuron, last = self.neuron, self.pool and self.last
        variant = Variant(family, self.y.dtype, neuron.kind, steps, vec, neuron.surrogate, last)
        device = self.y.device
        LAUNCHERS[device.type].launch(kernel, threads, args, variant=variant, device=device)

    def norm_args(self) -> list:
        norm = self.norm
        tensors = (norm.weight, norm.bias, norm.mean, norm.invstd, norm.conv_bias)
        return [pointer(t) for t in tensors]

    def neuron_args(self) -> list:
        neuron, real = self.neuron, self.real
        return [
            np.int32(self.steps),
            real(neuron.reciprocal_tau or 0),
            pointer(neuron.learned),
            real(neuron.v_threshold),
            real(neuron.v_reset),
            real(neuron.alpha),
        ]

    def pool_args(self) -> list:
        return [np.uint32(n) for n in self.y.shape[1:]]

    def shape_args(self) -> list:
        sizes = [np.uint32(n) for n in (self.channels, self.inner, self.splits)]
        return [np.int32(self.repeated), *sizes]

    def work(self, threads: int, vec: int = 1) -> Tensor | None:
        """Room for the membranes of ``threads`` packs at a time, where registers have none."""
        if self.steps <= self.unrolled:
            return None
        shape = (2, self.steps, vec, threads)
        return self.y.new_empty(shape, dtype=membrane_dtype(self.y.dtype))

    def bounded(self, threads: int) -> int:
        return threads if self.steps <= self.unrolled else min(threads, WORK_THREADS)


def forward(call: Call, residual: Tensor | None) -> list[Tensor]:
    """Spikes, or residual + spikes, [T * B, C / splits, H', W'] of every share."""
    y = call.y
    outs = empty_outputs(y, call.steps, call.repeated, call.pool, call.splits)
    if outs[0].numel() == 0:
        return outs
    residual = None if residual is None else like(residual, outs[0])
    tail = call.norm_args() + call.neuron_args()
    vec = call.vec(y, residual, *outs)
    packs = call.neurons // vec
    if call.pool:
        sizes = [np.uint32(packs), np.uint32(call.inputs // vec), np.int32(call.repeated)]
        args = [*map(pointer, (y, residual, *outs)), *sizes, *call.pool_args(), *tail]
        call.launch("pooled", "pooled_forward", packs, args, vec)
    else:
        tensors = (y, residual, *padded(outs))
        args = [*map(pointer, tensors), np.uint32(packs), *call.shape_args(), *tail]
        call.launch("dense", "forward", packs, args, vec)
    return outs


@dataclass
class Shares:
    """The split of a sum over channels among threads, and the buffer of its partial sums."""

    call: Call
    vec: int

    def __post_init__(self):
        call = self.call
        groups = call.channels // self.vec if call.inner == 1 else call.channels
        packs = call.neurons // self.vec // groups
        least = 4 * call.channels // groups  # a thread writes a sum for each channel it reads
        self.per_group = parts(packs, groups, least, call.bounded(REDUCE_THREADS))
        self.threads = groups * self.per_group
        split = (self.per_group, call.channels)
        if call.inner != 1:
            split = split[::-1]
        dtype = membrane_dtype(call.y.dtype)
        self.partial = call.y.new_empty((3, *split), dtype=dtype)

    def sums(self) -> Tensor:
        """[3, C]: of dz, of dz * (y - mean), and of PLIF's gradient."""
        return self.partial.sum(1 if self.call.inner == 1 else 2)


def padded(shares: Sequence[Tensor]) -> list[Tensor | None]:
    """As many as the kernels know of."""
    return [*shares, *[None] * (MAX_SPLITS - len(shares))]


def reduce(call: Call, grads: Sequence[Tensor]) -> Tensor:
    """Sums over the gradient dz of the neuron's current, [3, C]; see :meth:`Shares.sums`."""
    vec = call.vec(call.y, *grads)
    shares = Shares(call, vec)
    work = call.work(shares.threads)
    args = [pointer(t) for t in (call.y, *padded(grads), shares.partial, work)]
    args += [np.uint32(n) for n in (call.neurons // vec, shares.per_group, shares.threads)]
    args += call.shape_args() + call.norm_args() + call.neuron_args()
    call.launch("dense", "reduce", shares.threads, args, vec)
    return shares.sums()


def backward(call: Call, grads: Sequence[Tensor], sums: Tensor | None) -> Tensor:
    """Gradient of ``y``, without a pool; ``sums`` of :func:`reduce` for statistics of ``y``."""
    y = call.y
    dy = torch.empty_like(y)
    vec = call.vec(y, *grads, dy)
    packs = call.neurons // vec
    threads = call.bounded(packs)
    work = call.work(threads)
    args = [pointer(t) for t in (y, *padded(grads), dy, work, sums)]
    args += [reciprocal_count(call), np.uint32(packs), np.uint32(threads)]
    args += call.shape_args() + call.norm_args() + call.neuron_args()
    call.launch("dense", "backward", threads, args, vec)
    return dy


def pooled_backward(call: Call, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient at the windows' maxima, their places 0 to 8 (both [T or 1, B, C, H', W'], flat), and
    the sums of :func:`reduce`."""
    rows = 1 if call.repeated else call.steps
    grad_max = call.y.new_empty(rows * call.neurons)
    place = call.y.new_empty(rows * call.neurons, dtype=torch.uint8)
    vec = call.vec(call.y, grad, grad_max)
    shares = Shares(call, vec)
    work = call.work(shares.threads, vec)
    args = [pointer(t) for t in (call.y, grad, grad_max, place, shares.partial, work)]
    sizes = (call.neurons // vec, call.inputs // vec, shares.per_group, shares.threads)
    args += [np.uint32(n) for n in sizes]
    args += [np.int32(call.repeated), *call.pool_args(), *call.norm_args(), *call.neuron_args()]
    call.launch("pooled", "pooled_backward", shares.threads, args, vec)
    return grad_max, place, shares.sums()


def pooled_gather(call: Call, grad_max: Tensor, place: Tensor, sums: Tensor | None) -> Tensor:
    """Gradient of ``y`` from :func:`pooled_backward`'s."""
    dy = torch.empty_like(call.y)
    vec = call.vec(call.y, grad_max, dy)
    packs = call.neurons // vec
    args = [pointer(t) for t in (call.y, grad_max, place, dy, sums)]
    args += [reciprocal_count(call), np.uint32(packs), np.uint32(call.inputs // vec)]
    rows = 1 if call.repeated else call.steps
    args += [np.int32(rows), *call.pool_args(), *call.norm_args()]
    call.launch("pooled", "pooled_gather", packs, args, vec)
    return dy


def reciprocal_count(call: Call) -> np.floating:
    """1 / the number of values behind each channel's statistics."""
    return call.real(1 / math.prod((call.y.shape[0], *call.y.shape[2:])))
