"""Q-K attention's mask in one pass: ``torch.ops.qkformer.qk_mask`` and its backward."""

import functools
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkformer.neurons.cuda import loader
from qkformer.neurons.cuda.launch import (
    MAX_UNROLLED,
    WORK_THREADS,
    Neuron,
    Shape,
    aligned,
    pointer,
    values_at_once,
)
from qkformer.neurons.cuda.layout import channels_last, dense, like
from qkformer.neurons.cuda.loader import Variant
from qkformer.neurons.cuda.registry import below_autograd, differentiable, operator
from qkformer.neurons.reference import membrane_dtype

WARP = 32  # threads
SECTOR = 32  # bytes; a GPU reads no fewer
ENOUGH_BLOCKS = 512  # for several on each multiprocessor of the largest GPU
MOST_VEC = 4  # by the shared memory of a block
_STRUCTS = {  # MaskArguments in qk_mask.cu
    torch.float32: struct.Struct("9P4f6I0P"),
    torch.float64: struct.Struct("9P4d6I0P"),
}


def _fake_qk_mask(q, k, *_constants):
    return torch.empty_like(dense(q))


@operator("qk_mask", fake=_fake_qk_mask)
def qk_mask_op(
    q: Tensor,
    k: Tensor,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    steps: int,
    heads: int | None,
    surrogate: str = "sigmoid",
) -> Tensor:
    """See :func:`qk_mask`; ``learned`` is a 0-dim 1 / tau."""
    q = dense(q)
    out = torch.empty_like(q)
    if q.numel():
        k = like(k, q)
        neuron = Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
        teams = _teams(_shape(q, neuron, steps), heads, aligned(q, k, out))
        _launch("qk_mask", teams, teams.blocks, neuron, (q, k, None, out, None, None, None, None))
    return out


def _fake_qk_mask_backward(grad, q, _k, learned, *_constants):
    q = dense(q)
    grad_tau = q.new_empty(() if learned is not None else 0, dtype=membrane_dtype(q.dtype))
    return torch.empty_like(q), torch.empty_like(q), grad_tau


@operator("qk_mask_backward", fake=_fake_qk_mask_backward)
def qk_mask_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    steps: int,
    heads: int | None,
    surrogate: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, of k and of ``learned`` (0-dim; empty without one)."""
    q = dense(q)
    grad_q, grad_k = torch.empty_like(q), torch.empty_like(q)
    real = membrane_dtype(q.dtype)
    if q.numel() == 0:
        return grad_q, grad_k, q.new_zeros(() if learned is not None else 0, dtype=real)
    k, grad = like(k, q), like(grad, q)
    neuron = Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
    teams = _teams(_shape(q, neuron, steps), heads, aligned(q, k, grad, grad_q, grad_k))
    blocks, work = teams.blocks, None
    if steps > MAX_UNROLLED:
        blocks = max(1, min(blocks, WORK_THREADS // loader.BLOCK))
        work = q.new_empty((2, steps, blocks * loader.BLOCK), dtype=real)
    partial = q.new_empty(blocks * loader.BLOCK // teams.slices * teams.lanes, dtype=real)
    tensors = (q, k, grad, None, grad_q, grad_k, partial, work)
    _launch("qk_mask_backward", teams, blocks, neuron, tensors)
    return grad_q, grad_k, partial.sum() if learned is not None else partial.new_empty(0)


class _QKMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, learned, *constants):
        ctx.save_for_backward(q, k, learned)
        ctx.constants = constants
        with below_autograd():
            return qk_mask_op(q, k, learned, *constants)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_q, grad_k, grad_tau = qk_mask_backward_op(grad, *ctx.saved_tensors, *ctx.constants)
        learned = grad_tau if ctx.needs_input_grad[2] else None
        return grad_q, grad_k, learned, *[None] * len(ctx.constants)


differentiable(qk_mask_op, _QKMask)


def qk_mask(
    q: Tensor,
    k: Tensor,
    *,
    heads: int | None,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
    surrogate: str = "sigmoid",
) -> Tensor:
    """``neuron(sum of q) * k``: Q-K token attention's mask, or Q-K channel attention's.

    The sums are taken and stay in the membrane's dtype. Keeps q and k for backward, and nothing of
    what is in between.

    Args:
        q, k: [T, B, C, H, W], of the same dtype.
        heads: token attention: a neuron per token and head, fed with the sum over the head's C /
            heads channels. None is channel attention: a neuron per channel, fed with the sum over
            the tokens.
        reciprocal_tau, v_threshold, v_reset, alpha, surrogate: of the neuron, as for
            :func:`qkformer.neurons.functional.spike_sequence`.

    Returns:
        [T, B, C, H, W], dtype of q.

    Raises:
        ValueError: 2^31 values or more in a time step.
    """
    learned = None
    if isinstance(reciprocal_tau, Tensor):
        learned, reciprocal_tau = reciprocal_tau.to(membrane_dtype(q.dtype)), None
    steps, batch = q.shape[:2]
    neuron = (learned, reciprocal_tau, v_threshold, v_reset, alpha)
    out = qk_mask_op(q.flatten(0, 1), k.flatten(0, 1), *neuron, steps, heads, surrogate)
    return out.unflatten(0, (steps, batch))


class _Teams(NamedTuple):
    """How a block's threads share the work: teams of ``slices`` threads, see qk_mask.cu."""

    variant: Variant
    steps: int
    groups: int
    summed: int
    inner: int
    slices: int
    along: bool

    @property
    def blocks(self) -> int:
        return -(-self.groups * self.slices // loader.BLOCK)

    @property
    def lanes(self) -> int:
        """Neurons of a team."""
        return 1 if self.along else self.variant.vec


def _shape(q: Tensor, neuron: Neuron, steps: int) -> Shape:
    last = channels_last(q)
    return Shape(tuple(q.shape), last, q.dtype, neuron.kind, neuron.surrogate, steps)


@functools.lru_cache(maxsize=4096)
def _teams(shape: Shape, heads: int | None, aligned: bool) -> _Teams:
    """Of spikes of this shape; ``aligned`` as for :func:`launch.plan`."""
    n, channels, height, width = shape.sizes
    tokens = height * width
    summed, inner = (tokens, channels) if heads is None else (channels // heads, tokens)
    along = (shape.last or tokens == 1) == (heads is not None)
    most = min(MOST_VEC, values_at_once(shape)) if aligned else 1
    vec = next(v for v in (4, 2, 1) if v <= most and (summed if along else inner) % v == 0)
    groups = n // shape.steps * channels * tokens // summed
    if groups * summed // vec >= 2**31:
        raise ValueError("the kernels index at most 2^31 - 1 packs per time step: smaller batch")
    steps = shape.steps if shape.steps <= MAX_UNROLLED else 0
    variant = Variant("qk_mask", shape.dtype, shape.kind, steps, vec, shape.surrogate)
    if along:
        summed //= vec
        slices = min(loader.BLOCK, _power_of_two(summed))
        return _Teams(variant, shape.steps, groups, summed, 1, slices, along)
    groups, inner = groups // vec, inner // vec
    teams = WARP
    while groups < teams * ENOUGH_BLOCKS and teams * vec * shape.dtype.itemsize > SECTOR:
        teams //= 2
    # a thread for each neuron
    slices = max(vec, min(loader.BLOCK // teams, _power_of_two(summed)))
    return _Teams(variant, shape.steps, groups, summed, inner, slices, along)


def _launch(kernel: str, teams: _Teams, blocks: int, neuron: Neuron, tensors: tuple) -> None:
    """``tensors``: q, k, grad, out, grad_q, grad_k, partial, work; None for what is not there."""
    q = tensors[0]
    pointers = (*map(pointer, tensors), pointer(neuron.learned))
    argument = _STRUCTS[membrane_dtype(q.dtype)].pack(*pointers, *neuron.reals, *teams[1:])
    loader.LAUNCHERS[q.device.type].launch(kernel, blocks, argument, teams.variant, q.device)


def _power_of_two(n: int) -> int:
    """The first that is not less."""
    return 1 << (n - 1).bit_length()
