"""Layers in one kernel, where the kernels of CuPy run: BatchNorm -> (max pool) -> neuron
(+ residual), and the masks of Q-K attention.

The same functions of the same modules as one after the other; nothing in between is written to
memory or kept for backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qkformer.neurons import SpikingNeuron
from qkformer.neurons.cuda import ops
from qkformer.neurons.cuda.qk_mask import qk_mask
from qkformer.neurons.functional import resolve_backend
from qkformer.neurons.reference import membrane_dtype

RUNNING = ("running_mean", "running_var")


def fuses(bn: nn.Module, neuron: nn.Module | None, x: Tensor) -> bool:
    """Whether :func:`bn_neuron` can stand for ``neuron(bn(y))`` behind a convolution of ``x``.

    It cannot for other norms (SyncBatchNorm's statistics are other ranks' too), neurons of other
    kinds or in single-step mode, where hooks want to see what is in between, and where the
    neuron's backend is not CuPy's.

    Args:
        bn: an Identity is one that was folded into the convolution.
        x: [N, C, H, W].

    Raises:
        RuntimeError: the neuron's backend is "cupy" and cannot run.
    """
    return (
        type(bn) in (nn.BatchNorm2d, nn.Identity)
        and not hooked(bn)
        and x.numel() > 0
        and runs_on("cupy", neuron, x)
    )


def convolve(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution without its bias, and the bias, for the kernel behind it to add on its way.

    Added by the convolution, it costs a pass over the output, and another for its gradient. So it
    is where nothing else is possible: a convolution of another kind, or hooks on it.
    """
    if type(conv).forward is not nn.Conv2d.forward or conv.bias is None or hooked(conv):
        return conv(x), None
    return conv._conv_forward(x, conv.weight, None), conv.bias


def bn_neuron(
    bn: nn.BatchNorm2d,
    neuron: SpikingNeuron,
    y: Tensor,
    *,
    steps: int,
    conv_bias: Tensor | None = None,
    pool: bool = False,
    repeats: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """``neuron(bn(y))`` over time, with ``bn``'s running statistics updated as by its forward.

    Args:
        bn: BatchNorm, or Identity.
        y: [T * B, C, H, W], or [B, C, H, W] with ``repeats`` = T for an input that is the same at
            every time step; the running variance then counts each sample T times.
        steps: T.
        conv_bias: [C], added to ``y`` in front of ``bn``, see :func:`convolve`.
        pool: a max pool of kernel 3, stride 2 and padding 1 stands between the two.
        residual: [T, B, C, H', W'], added to the spikes.

    Returns:
        [T, B, C, H', W'], dtype of ``y`` (promoted to the residual's).
    """
    added = None
    if residual is not None and residual.dtype == y.dtype:
        added, residual = residual.flatten(0, 1), None
    (spikes,) = ops.bn_neuron(
        y,
        **_norm([bn], y, conv_bias, repeats),
        **neuron.constants,
        residual=added,
        steps=steps,
        repeated=repeats > 1,
        pool=pool,
    )
    spikes = spikes.unflatten(0, (steps, -1))
    return spikes if residual is None else residual + spikes


def bn_neurons(
    bns: Sequence[nn.BatchNorm2d],
    neuron: SpikingNeuron,
    y: Tensor,
    *,
    steps: int,
    conv_bias: Tensor | None = None,
    heads: int = 1,
) -> tuple[Tensor, ...]:
    """``neuron(bn(share))`` for each of several BatchNorms and its share of the channels of ``y``.

    Args:
        bns: with one eps and one mode, each for equally many channels.
        neuron: stands for one of its kind behind each.
        y: [T * B, n C, H, W].
        steps: T.
        conv_bias: [n C], as for :func:`bn_neuron`.
        heads: above 1 for a ``y`` in channels last alone.

    Returns:
        n times [T, B, C, H, W], contiguous or channels last as ``y``; of several heads
        [T, B, heads, H * W, C / heads], contiguous.
    """
    norm = _norm(bns, y, conv_bias)
    options = dict(steps=steps, splits=len(bns), heads=heads)
    shares = ops.bn_neuron(y, **norm, **neuron.constants, **options)
    return tuple(share.unflatten(0, (steps, -1)) for share in shares)


def masks(neuron: nn.Module, q: Tensor, k: Tensor) -> bool:
    """Whether :func:`mask` can stand for the steps it names; errors as :func:`fuses`."""
    return q.dtype == k.dtype and q.shape == k.shape and runs_on("cupy", neuron, q)


def mask(neuron: SpikingNeuron, q: Tensor, k: Tensor, *, heads: int | None) -> Tensor:
    """``neuron(sum of q) * k``, all [T, B, C, H, W]; the sum is over each head's channels, or over
    the tokens where ``heads`` is None."""
    return qk_mask(q, k, heads=heads, **neuron.constants)


def runs_on(backend: str, neuron: nn.Module | None, x: Tensor) -> bool:
    """Whether it is a multi-step neuron without hooks, whose currents like ``x`` ``backend`` would
    take; errors as :func:`fuses`."""
    return (
        isinstance(neuron, SpikingNeuron)
        and neuron.in_kernels
        and neuron.step_mode == "m"
        and not hooked(neuron)
        and resolve_backend(neuron.backend, x.device, x.dtype) == backend
    )


def check_values(y: Tensor) -> None:
    """BatchNorm's own error where a batch [N, C, H, W] has no variance.

    Raises:
        ValueError: one value per channel.
    """
    if y.numel() == y.shape[1]:
        raise ValueError(
            f"BatchNorm needs more than 1 value per channel in training, got {tuple(y.shape)}"
        )


def _norm(
    bns: Sequence[nn.BatchNorm2d | nn.Identity],
    y: Tensor,
    conv_bias: Tensor | None,
    repeats: int = 1,
) -> dict[str, Any]:
    """BatchNorms side by side as the kernels know them; running statistics are updated."""
    first = bns[0]
    if isinstance(first, nn.Identity):
        return dict(conv_bias=conv_bias)
    channels = sum(bn.num_features for bn in bns)
    if channels != y.shape[1]:  # the kernels would write beyond the running statistics
        raise ValueError(f"BatchNorm of {channels} channels, got {tuple(y.shape)}")
    real = membrane_dtype(y.dtype)
    parameters = _joined([bn.weight for bn in bns]), _joined([bn.bias for bn in bns]), conv_bias
    weight, bias, conv_bias = (ops.in_real(parameter, real) for parameter in parameters)
    batch_statistics = first.training or first.running_mean is None
    with torch.no_grad():
        if batch_statistics:
            table = _batch_norm(bns, y, weight, bias, conv_bias, repeats)
        else:
            mean, var = ([getattr(bn, name).to(real) for bn in bns] for name in RUNNING)
            table = ops.fixed_norm(weight, bias, conv_bias, mean, var, first.eps)
    return dict(
        table=table,
        weight=weight,
        bias=bias,
        conv_bias=conv_bias,
        batch_statistics=batch_statistics,
    )


def _batch_norm(
    bns: Sequence[nn.BatchNorm2d],
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    repeats: int,
) -> Tensor:
    check_values(y)
    real = membrane_dtype(y.dtype)
    momentum, eps = bns[0].momentum, bns[0].eps
    tracked = [bn for bn in bns if bn.training and bn.track_running_stats]
    # none where a checkpointed batch runs again
    batches = [bn.num_batches_tracked for bn in tracked if bn.num_batches_tracked is not None]
    if momentum is None:  # the average over all batches; none counted: as PyTorch's, unchanged
        momentum = None if batches else 0.0
        for count in batches:
            count.add_(1)
    buffers = [[getattr(bn, name) for bn in tracked] for name in RUNNING]
    mean, var = ([buffer.to(real) for buffer in each] for each in buffers)
    table = ops.batch_norm(y, weight, bias, conv_bias, mean, var, batches, eps, momentum, repeats)
    for own, updated in zip([*buffers[0], *buffers[1]], [*mean, *var], strict=True):
        if own is not updated:
            own.copy_(updated)
    return table


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    return tensors[0] if len(tensors) == 1 or tensors[0] is None else torch.cat(tensors)


def hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes through the module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
