"""Q-K attention's mask in one pass: ``torch.ops.qkformer.qk_mask`` and its backward."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkformer.neurons.cuda import launch
from qkformer.neurons.cuda.layout import dense, like, pointer
from qkformer.neurons.cuda.loader import BLOCK
from qkformer.neurons.cuda.registry import below_autograd, differentiable, operator
from qkformer.neurons.reference import membrane_dtype

WARP = 32  # threads
SECTOR = 32  # bytes; a GPU reads no fewer
ENOUGH_BLOCKS = 512  # for several on each multiprocessor of the largest GPU


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
        call = _call(q, learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate, steps)
        teams = _teams(call, heads, q, k, out)
        args = [*map(pointer, (q, k, out)), *teams.args(), *call.neuron_args()]
        call.launch("qk_mask", "qk_mask", teams.blocks * BLOCK, args, teams.vec)
    return out


def _fake_qk_mask_backward(grad, q, *_inputs):
    q = dense(q)
    grad_tau = q.new_empty((), dtype=membrane_dtype(q.dtype))
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
    """Gradients of q, of k and of ``learned`` (0-dim)."""
    q = dense(q)
    grad_q, grad_k = torch.empty_like(q), torch.empty_like(q)
    grad_tau = torch.zeros((), dtype=membrane_dtype(q.dtype), device=q.device)
    if q.numel():
        k, grad = like(k, q), like(grad, q)
        call = _call(q, learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate, steps)
        teams = _teams(call, heads, q, k, grad, grad_q, grad_k)
        threads = max(call.bounded(teams.blocks * BLOCK) // BLOCK, 1) * BLOCK
        partial = q.new_empty(threads // teams.slices * teams.lanes, dtype=grad_tau.dtype)
        tensors = (q, k, grad, grad_q, grad_k, partial, call.work(threads))
        args = [*map(pointer, tensors), np.uint32(threads), *teams.args(), *call.neuron_args()]
        call.launch("qk_mask", "qk_mask_backward", threads, args, teams.vec)
        if learned is not None:
            grad_tau = partial.sum()
    return grad_q, grad_k, grad_tau


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


def _call(q: Tensor, *constants) -> launch.Call:
    *neuron, steps = constants
    return launch.Call(q, launch.Norm(), launch.Neuron(*neuron), steps, False, False)


@dataclass
class _Teams:
    """How a block's threads share the work: teams of ``slices`` threads, see qk_mask.cu."""

    groups: int
    summed: int
    inner: int
    slices: int
    along: bool
    vec: int

    @property
    def blocks(self) -> int:
        return -(-self.groups * self.slices // BLOCK)

    @property
    def lanes(self) -> int:
        """Neurons of a team."""
        return 1 if self.along else self.vec

    def args(self) -> list:
        sizes = (self.groups, self.summed, self.inner, self.slices)
        return [*map(np.uint32, sizes), np.int32(self.along)]


def _teams(call: launch.Call, heads: int | None, *tensors: Tensor) -> _Teams:
    tokens = call.y.shape[2] * call.y.shape[3]
    summed, inner = (tokens, call.channels) if heads is None else (call.channels // heads, tokens)
    along = call.last == (heads is not None)
    groups = call.neurons // summed
    if along:
        vec = call.vec(*tensors, run=summed)
        summed //= vec
        slices = min(BLOCK, _power_of_two(summed))
        return _Teams(groups, summed, 1, slices, along, vec)
    vec = call.vec(*tensors, run=inner)
    groups, inner = groups // vec, inner // vec
    teams = WARP
    while groups < teams * ENOUGH_BLOCKS and teams * vec * call.y.element_size() > SECTOR:
        teams //= 2
    slices = max(vec, min(BLOCK // teams, _power_of_two(summed)))  # a thread for each neuron
    return _Teams(groups, summed, inner, slices, along, vec)


def _power_of_two(n: int) -> int:
    """The first that is not less."""
    return 1 << (n - 1).bit_length()
