"""Q-K token attention's mask in one pass: ``torch.ops.qkformer.token_mask`` and its backward."""

import numpy as np
import torch
from torch import Tensor

from qkformer.neurons.cuda import launch
from qkformer.neurons.cuda.layout import dense, like, pointer
from qkformer.neurons.reference import membrane_dtype


@torch.library.custom_op("qkformer::token_mask", mutates_args=())
def token_mask_op(
    q: Tensor,
    k: Tensor,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    steps: int,
    heads: int,
) -> Tensor:
    """See :func:`token_mask`; ``learned`` is a 0-dim 1 / tau."""
    q = dense(q)
    out = torch.empty_like(q)
    if q.numel():
        k = like(k, q)
        call = _call(q, learned, reciprocal_tau, v_threshold, v_reset, alpha, steps)
        sizes, threads = _sizes(call, heads)
        args = [*map(pointer, (q, k, out)), *sizes, *call.neuron_args()]
        call.launch("token_mask", "token_mask", threads, args)
    return out


@token_mask_op.register_fake
def _(q, k, *_constants):
    return torch.empty_like(dense(q))


@torch.library.custom_op("qkformer::token_mask_backward", mutates_args=())
def token_mask_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    steps: int,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, of k and of ``learned`` (0-dim)."""
    q = dense(q)
    grad_q, grad_k = torch.empty_like(q), torch.empty_like(q)
    grad_tau = torch.zeros((), dtype=membrane_dtype(q.dtype), device=q.device)
    if q.numel():
        k, grad = like(k, q), like(grad, q)
        call = _call(q, learned, reciprocal_tau, v_threshold, v_reset, alpha, steps)
        sizes, threads = _sizes(call, heads)
        partial = q.new_empty(threads, dtype=grad_tau.dtype)
        tensors = (q, k, grad, grad_q, grad_k, partial, call.work(threads))
        args = [*map(pointer, tensors), *sizes, *call.neuron_args()]
        call.launch("token_mask", "token_mask_backward", threads, args)
        if learned is not None:
            grad_tau = partial.sum()
    return grad_q, grad_k, grad_tau


@token_mask_backward_op.register_fake
def _(grad, q, *_inputs):
    q = dense(q)
    grad_tau = q.new_empty((), dtype=membrane_dtype(q.dtype))
    return torch.empty_like(q), torch.empty_like(q), grad_tau


def _setup_context(ctx, inputs, output):
    q, k, learned, *ctx.constants = inputs
    ctx.save_for_backward(q, k, learned)


def _backward(ctx, grad):
    grad_q, grad_k, grad_tau = token_mask_backward_op(grad, *ctx.saved_tensors, *ctx.constants)
    learned = grad_tau if ctx.needs_input_grad[2] else None
    return grad_q, grad_k, learned, *[None] * len(ctx.constants)


token_mask_op.register_autograd(_backward, setup_context=_setup_context)


def token_mask(
    q: Tensor,
    k: Tensor,
    *,
    heads: int,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
) -> Tensor:
    """``neuron(q.sum over each head's channels) * k``.

    Keeps q and k for backward, and nothing of what is in between.

    Args:
        q, k: [T, B, C, H, W], of the same dtype, ``heads`` dividing C.
        reciprocal_tau, v_threshold, v_reset, alpha: of the neuron, as for
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
    out = token_mask_op(q.flatten(0, 1), k.flatten(0, 1), *neuron, steps, heads)
    return out.unflatten(0, (steps, batch))


def _call(q: Tensor, *constants) -> launch.Call:
    *neuron, steps = constants
    return launch.Call(q, launch.Norm(), launch.Neuron(*neuron), steps, False, False)


def _sizes(call: launch.Call, heads: int) -> tuple[list, int]:
    """The kernels' TOKEN_ARGUMENTS, and how many threads to start."""
    depth = call.channels // heads
    neurons = call.neurons // depth
    threads = call.bounded(neurons)
    tokens = call.y.shape[2] * call.y.shape[3]
    sizes = [np.uint32(n) for n in (neurons, threads, depth, tokens)]
    return [*sizes, np.int32(call.last)], threads
