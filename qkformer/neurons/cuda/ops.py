"""The kernels as PyTorch operators: ``torch.ops.qkformer.bn_neuron`` and its backward.

Registered with fake implementations and autograd, so that ``torch.compile``, ``opcheck`` and CUDA
graphs work. Nothing is mutated: BatchNorm's running statistics are its module's business.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkformer.neurons.cuda import launch, statistics
from qkformer.neurons.cuda.layout import dense, empty_outputs, like
from qkformer.neurons.cuda.registry import below_autograd, differentiable, operator
from qkformer.neurons.reference import membrane_dtype


def _fake_bn_neuron(y, *args):
    steps, repeated, pool, _, splits = args[12:17]
    return empty_outputs(dense(y), steps, repeated, pool, splits)


@operator("bn_neuron", fake=_fake_bn_neuron)
def bn_neuron_op(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    conv_bias: Tensor | None,
    residual: Tensor | None,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    surrogate: str,
    steps: int,
    repeated: bool,
    pool: bool,
    batch_statistics: bool,
    splits: int,
) -> list[Tensor]:
    """See :func:`bn_neuron`; ``learned`` is a 0-dim 1 / tau, ``mean`` and ``invstd`` are given."""
    norm = launch.Norm(weight, bias, mean, invstd, conv_bias)
    neuron = launch.Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
    call = launch.Call(dense(y), norm, neuron, steps, repeated, pool, splits)
    return launch.forward(call, residual)


def _fake_bn_neuron_backward(grads, y, *args):
    y = dense(y)
    sums = y.new_empty((3, y.shape[1]), dtype=membrane_dtype(y.dtype))
    return torch.empty_like(y), sums


@operator("bn_neuron_backward", fake=_fake_bn_neuron_backward)
def bn_neuron_backward_op(
    grads: list[Tensor],
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    conv_bias: Tensor | None,
    learned: Tensor | None,
    reciprocal_tau: float | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    surrogate: str,
    steps: int,
    repeated: bool,
    pool: bool,
    batch_statistics: bool,
    splits: int,
    sums_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of ``y``, and [3, C]: those of BatchNorm's output, summed; of the same times
    ``y - mean``; of ``learned``, its sum over C. Without ``sums_needed`` the second is zero."""
    y = dense(y)
    norm = launch.Norm(weight, bias, mean, invstd, conv_bias)
    neuron = launch.Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
    call = launch.Call(y, norm, neuron, steps, repeated, pool, splits)
    if y.numel() == 0:
        return torch.empty_like(y), _no_sums(y)
    grads = [like(grad, y) for grad in grads]
    if pool:
        grad_max, place, sums = launch.pooled_backward(call, *grads)
        dy = launch.pooled_gather(call, grad_max, place, sums if batch_statistics else None)
        return dy, sums
    sums = launch.reduce(call, grads) if sums_needed or batch_statistics else _no_sums(y)
    return launch.backward(call, grads, sums if batch_statistics else None), sums


def _no_sums(y: Tensor) -> Tensor:
    return y.new_zeros((3, y.shape[1]), dtype=membrane_dtype(y.dtype))


class _BNNeuron(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight, bias, mean, invstd, conv_bias, residual, learned, *constants):
        norm = (weight, bias, mean, invstd, conv_bias)
        ctx.save_for_backward(y, *norm, learned)
        ctx.constants = constants
        with below_autograd():
            return tuple(bn_neuron_op(y, *norm, residual, learned, *constants))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        needs, saved, batch_statistics = ctx.needs_input_grad, ctx.saved_tensors, ctx.constants[-2]
        _y, weight, _bias, _mean, invstd, _conv_bias, _learned = saved
        needs_sums = needs[1] or needs[2] or needs[5] or needs[7]
        dy, sums = bn_neuron_backward_op(grads, *saved, *ctx.constants, needs_sums)
        grad_conv_bias = None
        if needs[5] and batch_statistics:
            grad_conv_bias = torch.zeros_like(sums[0])  # the mean moves with it
        elif needs[5]:
            scale = [factor for factor in (weight, invstd) if factor is not None]
            grad_conv_bias = math.prod(scale, start=sums[0])
        return (
            dy,
            sums[1] * invstd if needs[1] else None,
            sums[0] if needs[2] else None,
            None,
            None,
            grad_conv_bias,
            grads[0] if needs[6] else None,
            sums[2].sum() if needs[7] else None,
            *[None] * len(ctx.constants),
        )


differentiable(bn_neuron_op, _BNNeuron)


def _fake_batch_statistics(y, *args):
    mean = y.new_empty(y.shape[1], dtype=membrane_dtype(y.dtype))
    return mean, torch.empty_like(mean), torch.empty_like(mean)


@operator("batch_statistics", fake=_fake_batch_statistics)
def batch_statistics(y: Tensor, eps: float, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each channel of [N, C, H, W]: mean, unbiased variance and 1 / sqrt(variance + eps).

    The last is of the biased variance. Constants: their dependence on ``y`` is part of
    :func:`bn_neuron`'s gradient.

    Args:
        y: without gradient.
        repeats: how often the unbiased variance counts each value.
    """
    return statistics.mean_variance_invstd(dense(y), eps, repeats)


def bn_neuron(
    y: Tensor,
    *,
    mean: Tensor | None,
    invstd: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    conv_bias: Tensor | None = None,
    residual: Tensor | None = None,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
    surrogate: str = "sigmoid",
    steps: int,
    repeated: bool = False,
    pool: bool = False,
    batch_statistics: bool,
    splits: int = 1,
) -> list[Tensor]:
    """BatchNorm, optional 3x3 max pool of stride 2, neuron, optional addition, in one kernel.

    Keeps ``y`` for backward, which computes normalised values and membranes again.

    Args:
        y: [T * B, C, H, W], contiguous or channels last (others are copied).
        mean, invstd: [C], mean and 1 / sqrt(variance + eps); None for a neuron alone.
        weight, bias: [C]; None for 1 and 0.
        conv_bias: [C], added to ``y`` in front of all: the bias of a convolution that left it out,
            which saves a pass over memory. ``mean`` is of values that have it.
        residual: [T * B, C, H', W'], added to the spikes.
        reciprocal_tau, v_threshold, v_reset, alpha, surrogate: as for
            :func:`qkformer.neurons.functional.spike_sequence`.
        steps: T.
        repeated: ``y`` is [B, C, H, W] and the same at every time step.
        pool: whether there is a max pool.
        batch_statistics: ``mean`` and ``invstd`` are those of ``y``, so its gradient passes
            through them (training); otherwise they are constants.
        splits: the output's channels leave as that many equal shares, at most 3; not with a pool
            or a residual.

    Returns:
        ``splits`` times [T * B, C / splits, H', W'], dtype and layout of ``y``; H' = ceil(H / 2)
        with a pool, else H.

    Raises:
        ValueError: 2^31 values or more in a time step.
    """
    real = membrane_dtype(y.dtype)
    weight, bias, mean, invstd, conv_bias = (
        None if t is None else t.to(real).contiguous()
        for t in (weight, bias, mean, invstd, conv_bias)
    )
    learned = reciprocal_tau.to(real) if isinstance(reciprocal_tau, Tensor) else None
    return bn_neuron_op(
        y,
        weight,
        bias,
        mean,
        invstd,
        conv_bias,
        residual,
        learned,
        None if learned is not None else reciprocal_tau,
        v_threshold,
        v_reset,
        alpha,
        surrogate,
        steps,
        repeated,
        pool,
        batch_statistics,
        splits,
    )


def neuron(x: Tensor, **constants: float | Tensor | None) -> Tensor:
    """Spikes [T, ...] of currents [T, ...]: :func:`spike_sequence` of ``functional``, in a kernel.

    Args:
        x: floating point, T >= 1.
        constants: ``reciprocal_tau``, ``v_threshold``, ``v_reset``, ``alpha``, ``surrogate``.
    """
    last = x.ndim == 5 and not x.is_contiguous() and x.permute(0, 1, 3, 4, 2).is_contiguous()
    if last:  # in the order of memory, as channels_last convolutions leave it
        x = x.permute(0, 1, 3, 4, 2)
    # A repeated input is read once. Not for training: its gradient is asked of every time step.
    repeated = len(x) > 1 and x.stride(0) == 0 and not (torch.is_grad_enabled() and x.requires_grad)
    y = x[:1] if repeated else x
    y = y.reshape(len(y), 1, 1, -1)
    none = dict(mean=None, invstd=None, batch_statistics=False)
    (spikes,) = bn_neuron(y, **none, **constants, steps=len(x), repeated=repeated)
    spikes = spikes.view(x.shape)
    return spikes.permute(0, 1, 4, 2, 3) if last else spikes
