"""From tensors to kernel launches: layout, packs, blocks, and the struct that a kernel takes.

``y`` is [T * B, C, H, W] (or [B, C, H, W], repeated over time), contiguous or channels last; a
neuron alone is one with C = H = 1 and no BatchNorm.
"""

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qkformer.neurons.cuda import loader
from qkformer.neurons.cuda.layout import channels_last, empty_outputs, like
from qkformer.neurons.cuda.loader import Variant
from qkformer.neurons.reference import membrane_dtype

MAX_SPLITS = 3  # tensors that a kernel writes: of q, k and v
MAX_UNROLLED = 32  # time steps a kernel is specialised for; beyond, a membrane goes to memory
MAX_UNROLLED_POOLED = 8
MOST_BYTES = 16  # that a thread reads at once
TILE = 32  # groups of channels that a block has at most, where channels are last
PER_THREAD = 4  # packs, where there are enough
REDUCING_BLOCKS = 1056  # eight on each multiprocessor of the largest GPU; each writes a part
WORK_THREADS = 1 << 16  # bounds the memory of membranes beyond these steps
KEEPING = ("reduce", "backward", "pooled_backward")  # kernels that go through time in reverse


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

    @property
    def reals(self) -> tuple[float, float, float, float]:
        """As the kernels' structs have them."""
        return self.reciprocal_tau or 0.0, self.v_threshold, self.v_reset, self.alpha


class Shape(NamedTuple):
    """What decides how a fused operation is launched.

    Attributes:
        sizes: [N, C, H, W] of y.
        last: y is channels last.
        pool: a max pool of kernel 3, stride 2 and padding 1 stands in front of the neuron.
        heads: the channels of a share are those of so many heads, see :class:`Call`.
        others: see :class:`Variant`; ``steps`` is T.
    """

    sizes: tuple[int, int, int, int]
    last: bool
    dtype: torch.dtype
    kind: str = "IF"
    surrogate: str = "sigmoid"
    steps: int = 1
    repeated: bool = False
    pool: bool = False
    splits: int = 1
    heads: int = 1


@dataclass(frozen=True)
class Plan:
    """How the kernels of one operation run; made once for every shape.

    Attributes:
        grid: blocks of the kernels that write a value for each they read, and the sizes that their
            struct ends in.
        reducing: the same of those that sum over channels.
        parts: of each sum that these leave, [3, parts, C].
    """

    variant: Variant
    grid: tuple[int, tuple[int, ...]]
    reducing: tuple[int, tuple[int, ...]]
    parts: int


@functools.lru_cache(maxsize=4096)
def plan(shape: Shape, family: str, aligned: bool) -> Plan:
    """Of ``family``: "dense" and "moments" take packs of y, "pooled" of its windows' maxima.

    Args:
        aligned: all tensors begin at a multiple of MOST_BYTES.

    Raises:
        ValueError: more than 2^31 - 1 packs per time step, or more than MAX_SPLITS splits.
    """
    n, channels, height, width = shape.sizes
    rows = n if shape.repeated else n // shape.steps
    values = rows * channels * height * width
    if shape.splits > MAX_SPLITS:
        raise ValueError(f"the kernels split channels in at most {MAX_SPLITS}: {shape.splits}")
    pixels = height * width
    if shape.pool:
        pixels = (height + 1) // 2 * ((width + 1) // 2)
    # [B, C, 1, 1] is channels last as well, and faster taken as such
    last = shape.last or height * width == 1
    run = channels // shape.splits // shape.heads if last else pixels
    most = values_at_once(shape) if aligned else 1
    vec = next(vec for vec in (8, 4, 2, 1) if vec <= most and run % vec == 0)
    if values // vec >= 2**31:
        raise ValueError(
            f"the kernels index at most 2^31 - 1 values per time step, or packs of {vec}, got "
            f"{values}: use a smaller batch or backend='torch'"
        )
    groups = channels // vec if last else channels
    packs = rows * channels * pixels // vec
    tile = _tile(groups) if last else 1
    tiles = -(-groups // tile)
    slices = loader.BLOCK // tile
    steps = shape.steps if shape.steps <= unrolled(shape) else 0
    most = 2**31 if steps else WORK_THREADS // loader.BLOCK
    parts = _at_most(-(-packs // (groups * slices * PER_THREAD)), most // tiles)
    reducing = _at_most(
        packs // (groups * slices * PER_THREAD), min(REDUCING_BLOCKS, most) // tiles
    )
    sizes = (shape.steps, packs, groups, packs // (groups * rows), tile, tiles)
    return Plan(
        Variant(
            family, shape.dtype, shape.kind, steps, vec, shape.surrogate, last, shape.repeated,
            shape.splits,
        ),
        (tiles * parts, (*sizes, parts, height, width, shape.heads)),
        (tiles * reducing, (*sizes, reducing, height, width, shape.heads)),
        reducing,
    )  # fmt: skip


def values_at_once(shape: Shape) -> int:
    """How many a thread reads at most; fewer where it keeps many steps, or whole windows."""
    if shape.pool:
        return min(4, MOST_BYTES // shape.dtype.itemsize) if shape.last else 1
    by_steps = next((n for n, most in ((8, 4), (4, 8), (2, 16)) if shape.steps <= most), 1)
    return min(by_steps, MOST_BYTES // shape.dtype.itemsize)


def unrolled(shape: Shape) -> int:
    """How many time steps the kernels may be specialised for."""
    return MAX_UNROLLED_POOLED if shape.pool else MAX_UNROLLED


def _tile(groups: int) -> int:
    """The largest power of two by which few threads have nothing to do."""
    sizes = (1 << i for i in reversed(range(TILE.bit_length())))
    return next(tile for tile in sizes if -groups % tile * 8 <= groups)


def _at_most(wanted: int, most: int) -> int:
    return max(1, min(wanted, most))


_STRUCTS = {  # Arguments in norm.cuh
    torch.float32: struct.Struct("16P4f10I0P"),
    torch.float64: struct.Struct("16P4d10I0P"),
}


@dataclass
class Call:
    """One fused operation on ``y``: everything its kernels share.

    Args:
        y: dense, see :func:`dense`.
        table: [4, C], rows center, scale, shift and 1 / sqrt(var + eps) of BatchNorm in the
            membrane's dtype; None without BatchNorm.
        conv_bias: [C], added to ``y`` where there is no table.
        heads: where above 1, ``y`` is channels last and every share of the output, one of several,
            is [T * B, heads, H * W, C / splits / heads] in memory.
        others: see :class:`Shape`.
    """

    y: Tensor
    table: Tensor | None
    conv_bias: Tensor | None
    neuron: Neuron
    steps: int
    repeated: bool
    pool: bool = False
    splits: int = 1
    heads: int = 1

    def __post_init__(self) -> None:
        y, neuron = self.y, self.neuron
        self.real = membrane_dtype(y.dtype)
        self.shape = Shape(
            tuple(y.shape), channels_last(y), y.dtype, neuron.kind, neuron.surrogate, self.steps,
            self.repeated, self.pool, self.splits, self.heads,
        )  # fmt: skip

    def plan(self, *tensors: Tensor | None) -> Plan:
        """Of an operation on these tensors besides y."""
        family = "pooled" if self.pool else "dense"
        return plan(self.shape, family, aligned(self.y, *tensors))

    def launch(
        self,
        kernel: str,
        plan: Plan,
        grid: tuple[int, tuple[int, ...]],
        given: Sequence[Tensor | None] = (),
        made: Sequence[Tensor] = (),
        places: Tensor | None = None,
        partial: Tensor | None = None,
        gradients: Tensor | None = None,
    ) -> None:
        """See Arguments in norm.cuh; ``gradients`` is what :func:`tables.gradients` gives."""
        blocks, sizes = grid
        work = self.work(plan, blocks) if kernel in KEEPING else None
        argument = _STRUCTS[self.real].pack(
            self.y.data_ptr(), *three(given), *three(made), pointer(places), pointer(partial),
            pointer(work), *self._norm(), *rows(gradients, 4, 2), pointer(self.neuron.learned),
            *self.neuron.reals, *sizes,
        )  # fmt: skip
        device = self.y.device
        loader.LAUNCHERS[device.type].launch(kernel, blocks, argument, plan.variant, device)

    def _norm(self) -> tuple[int, int, int]:
        if self.table is None:
            return 0, 0, pointer(self.conv_bias)
        return rows(self.table, 0, 3)

    def work(self, plan: Plan, blocks: int) -> Tensor | None:
        """Room for the membranes of all threads, where registers have none."""
        if plan.variant.steps:
            return None
        threads = blocks * loader.BLOCK
        return self.y.new_empty((2, self.steps, plan.variant.vec, threads), dtype=self.real)

    def partial(self, plan: Plan) -> Tensor:
        """Room for the parts of sums over channels."""
        return self.y.new_empty((3, plan.parts, self.y.shape[1]), dtype=self.real)


def forward(call: Call, residual: Tensor | None) -> list[Tensor]:
    """Spikes, or residual + spikes, [T * B, C / splits, H', W'] of every share, or its heads."""
    outs = empty_outputs(call.y, call.steps, call.repeated, call.pool, call.splits, call.heads)
    if residual is not None and residual.shape != outs[0].shape:  # or the kernel reads beyond it
        shapes = f"{tuple(outs[0].shape)}, got {tuple(residual.shape)}"
        raise ValueError(f"the residual must be of the spikes' shape {shapes}")
    if outs[0].numel():
        residual = None if residual is None else like(residual, outs[0])
        plan = call.plan(residual, *outs)
        kernel = "pooled_forward" if call.pool else "forward"
        call.launch(kernel, plan, plan.grid, given=[residual], made=outs)
    return outs


def reduce(call: Call, grads: Sequence[Tensor]) -> Tensor:
    """Parts of the sums over the gradient dz of the neuron's current, for ``tables.gradients``."""
    plan = call.plan(*grads)
    partial = call.partial(plan)
    call.launch("reduce", plan, plan.reducing, given=grads, partial=partial)
    return partial


def backward(call: Call, grads: Sequence[Tensor], gradients: Tensor | None) -> Tensor:
    """Gradient of ``y``, without a pool.

    ``gradients``: what :func:`tables.gradients` made of :func:`reduce`; None where BatchNorm's
    statistics are not those of ``y``.
    """
    dy = torch.empty_like(call.y)
    plan = call.plan(*grads, dy)
    call.launch("backward", plan, plan.grid, given=grads, made=[dy], gradients=gradients)
    return dy


def pooled_backward(call: Call, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient at the windows' maxima, their places 0 to 8 (both [T or 1, B, C, H', W'], flat), and
    parts of the sums as from :func:`reduce`."""
    plan = call.plan(grad)
    windows = grad.numel() // (call.steps if call.repeated else 1)
    grad_max = grad.new_empty(windows)
    places = grad.new_empty(windows, dtype=torch.uint8)
    partial = call.partial(plan)
    tensors = dict(given=[grad], made=[grad_max], places=places, partial=partial)
    call.launch("pooled_backward", plan, plan.reducing, **tensors)
    return grad_max, places, partial


def pooled_gather(call: Call, grad_max: Tensor, places: Tensor, gradients: Tensor | None) -> Tensor:
    """Gradient of ``y`` from :func:`pooled_backward`'s; ``gradients`` as for :func:`backward`."""
    dy = torch.empty_like(call.y)
    plan = call.plan(dy, grad_max)
    tensors = dict(given=[grad_max], made=[dy], places=places, gradients=gradients)
    call.launch("pooled_gather", plan, plan.grid, **tensors)
    return dy


def moments(y: Tensor) -> Tensor:
    """[3, parts, C]: count, mean and sum of squares about it, of each channel of a dense ``y``."""
    own = plan(Shape(tuple(y.shape), channels_last(y), y.dtype), "moments", aligned(y))
    real = membrane_dtype(y.dtype)
    partial = y.new_empty((3, own.parts, y.shape[1]), dtype=real)
    blocks, sizes = own.reducing
    pointers = (y.data_ptr(), *[0] * 7, partial.data_ptr(), *[0] * 7)
    argument = _STRUCTS[real].pack(*pointers, *[0.0] * 4, *sizes)
    loader.LAUNCHERS[y.device.type].launch("moments", blocks, argument, own.variant, y.device)
    return partial


def aligned(*tensors: Tensor | None) -> bool:
    """Whether a thread may read MOST_BYTES of each at once."""
    together = 0
    for tensor in tensors:
        if tensor is not None:
            together |= tensor.data_ptr()
    return together % MOST_BYTES == 0


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def rows(table: Tensor | None, first: int, count: int) -> tuple[int, ...]:
    """Pointers to so many rows of a contiguous table."""
    if table is None:
        return (0,) * count
    start, row = table.data_ptr(), table.stride(0) * table.itemsize
    return tuple(start + i * row for i in range(first, first + count))


def three(tensors: Sequence[Tensor | None]) -> tuple[int, int, int]:
    """Pointers to one tensor for each share of the channels, as the kernels' structs have them."""
    return (*map(pointer, tensors), *[0] * (MAX_SPLITS - len(tensors)))
