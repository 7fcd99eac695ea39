"""Layers in one kernel, where the kernels of CuPy run: BatchNorm -> (max pool) -> neuron
(+ residual), and the mask of Q-K token attention.

The same functions of the same modules as one after the other; nothing in between is written to
memory or kept for backward.
"""

import torch
from torch import Tensor, nn

from qkformer.neurons import NEURONS, SpikingNeuron
from qkformer.neurons.cuda import ops
from qkformer.neurons.cuda.token_mask import token_mask
from qkformer.neurons.functional import resolve_backend


def fuses(bn: nn.Module, neuron: nn.Module | None, y: Tensor) -> bool:
    """Whether :func:`bn_neuron` can stand for ``neuron(bn(y))``.

    It cannot for other norms (SyncBatchNorm's statistics are other ranks' too), neurons of other
    kinds or in single-step mode, where hooks want to see what is in between, and where the
    neuron's backend is not CuPy's.

    Args:
        y: [N, C, H, W], the convolution's output.

    Raises:
        RuntimeError: the neuron's backend is "cupy" and cannot run.
    """
    return (
        type(bn) is nn.BatchNorm2d
        and not _hooked(bn)
        and y.numel() > 0
        and not (_takes_batch_statistics(bn) and y.numel() == y.shape[1])  # BatchNorm's own error
        and _in_kernels(neuron, y)
    )


def bn_neuron(
    bn: nn.BatchNorm2d,
    neuron: SpikingNeuron,
    y: Tensor,
    *,
    steps: int,
    pool: bool = False,
    repeats: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """``neuron(bn(y))`` over time, with ``bn``'s running statistics updated as by its forward.

    Args:
        y: [T * B, C, H, W], or [B, C, H, W] with ``repeats`` = T for an input that is the same at
            every time step; the running variance then counts each sample T times.
        steps: T.
        pool: a max pool of kernel 3, stride 2 and padding 1 stands between the two.
        residual: [T, B, C, H', W'], added to the spikes.

    Returns:
        [T, B, C, H', W'], dtype of ``y`` (promoted to the residual's).
    """
    batch_statistics = _takes_batch_statistics(bn)
    if batch_statistics:
        mean, variance, invstd = ops.batch_statistics(y.detach(), bn.eps)
        if bn.training and bn.track_running_stats:
            count = y.numel() // y.shape[1] * repeats
            _update_running_statistics(bn, mean, variance * (count / (count - 1)))
    else:
        mean, invstd = bn.running_mean, (bn.running_var + bn.eps).rsqrt()
    added = None
    if residual is not None and residual.dtype == y.dtype:
        added, residual = residual.flatten(0, 1), None
    spikes = ops.bn_neuron(
        y,
        mean=mean,
        invstd=invstd,
        weight=bn.weight,
        bias=bn.bias,
        residual=added,
        reciprocal_tau=neuron.reciprocal_tau,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        alpha=neuron.alpha,
        steps=steps,
        repeated=repeats > 1,
        pool=pool,
        batch_statistics=batch_statistics,
    ).unflatten(0, (steps, -1))
    return spikes if residual is None else residual + spikes


def masks_tokens(neuron: nn.Module, q: Tensor, k: Tensor) -> bool:
    """Whether :func:`mask_tokens` can stand for the steps it names; errors as :func:`fuses`."""
    return q.dtype == k.dtype and _in_kernels(neuron, q)


def mask_tokens(neuron: SpikingNeuron, q: Tensor, k: Tensor, *, heads: int) -> Tensor:
    """``neuron(sum of q over each head's channels) * k``, all [T, B, C, H, W]."""
    return token_mask(
        q,
        k,
        heads=heads,
        reciprocal_tau=neuron.reciprocal_tau,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        alpha=neuron.alpha,
    )


def _in_kernels(neuron: nn.Module | None, x: Tensor) -> bool:
    return (
        type(neuron) in NEURONS.values()
        and neuron.step_mode == "m"
        and not _hooked(neuron)
        and resolve_backend(neuron.backend, x.device, x.dtype) == "cupy"
    )


def _takes_batch_statistics(bn: nn.BatchNorm2d) -> bool:
    return bn.training or bn.running_mean is None


@torch.no_grad()
def _update_running_statistics(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    if bn.num_batches_tracked is not None:  # as it is where a checkpointed batch runs again
        bn.num_batches_tracked.add_(1)
    momentum = bn.momentum
    if momentum is None:  # the average over all batches
        momentum = (1 / bn.num_batches_tracked).to(bn.running_mean.dtype)
    bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
    bn.running_var.lerp_(variance.to(bn.running_var.dtype), momentum)


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
