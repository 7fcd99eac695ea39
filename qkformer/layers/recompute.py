"""BatchNorm -> (max pool) -> neuron on the CPU, in plain PyTorch: one node of the autograd graph.

It keeps the output of the convolution and two statistics for backward, which computes the currents
from them again, by the same operations and so to the same bit. Spikes are written over the
currents, and so are the currents' gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qkformer.layers.fused import check_values, hooked, runs_on
from qkformer.neurons import SpikingNeuron, reference
from qkformer.neurons.sequence import gradients_of, spikes_of

POOL = (3, 2, 1)  # kernel, stride, padding


def fuses(conv: nn.Module, bn: nn.Module, neuron: nn.Module | None, y: Tensor) -> bool:
    """Whether :func:`bn_neuron` can stand for ``neuron(bn(y))`` behind ``y = conv(x)``.

    It cannot for other norms, neurons of other kinds or in single-step mode, where hooks want to
    see what is in between, and where operations are recorded, for ``torch.compile`` or a file.

    Args:
        bn: an Identity is one that was folded into the convolution; without gradients only.
        y: [N, C, H, W].
    """
    folded = type(bn) is nn.Identity and isinstance(conv, nn.Conv2d) and not hooked(conv)
    return (
        (type(bn) is nn.BatchNorm2d or (folded and not y.requires_grad))
        and not (hooked(bn) or nn.modules.module._has_any_global_hook())
        and y.device.type == "cpu"
        and y.numel() > 0
        and not _recorded()
        and runs_on("torch", neuron, y)
    )


def bn_neuron(
    bn: nn.BatchNorm2d | nn.Identity,
    neuron: SpikingNeuron,
    y: Tensor,
    *,
    steps: int,
    pool: bool = False,
    repeats: int = 1,
) -> Tensor:
    """``neuron(bn(y))`` over time, with ``bn``'s running statistics updated as by its forward.

    Args:
        y: [T * B, C, H, W], or [B, C, H, W] with ``repeats`` = T for an input that is the same at
            every time step; the running variance then counts each sample T times. An Identity
            leaves its memory to the spikes.
        steps: T.
        pool: a max pool of kernel 3, stride 2 and padding 1 stands between the two.

    Returns:
        Spikes [T, B, C, H', W'], dtype of ``y``.
    """
    tau, *constants = neuron.constants.values()
    if isinstance(bn, nn.Identity):
        x = over_time(max_pool(y) if pool else y, steps, repeats)
        return spikes_of(x, tau, *constants[:2], in_place=repeats == 1)
    batch_statistics = bn.training or bn.running_mean is None
    mean, var = (
        _statistics(bn, y, repeats) if batch_statistics else (bn.running_mean, bn.running_var)
    )
    norm = (bn.weight, bn.bias, mean, var)
    return _Spikes.apply(y, *norm, tau, constants, (bn.eps, batch_statistics, pool, steps, repeats))


class _Spikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight, bias, mean, var, tau, constants, options):
        learned = isinstance(tau, Tensor)
        ctx.save_for_backward(y, weight, bias, mean, var, tau if learned else None)
        ctx.tau, ctx.constants, ctx.options = None if learned else tau, constants, options
        eps, _, pool, steps, repeats = options
        x = F.batch_norm(y, mean, var, weight, bias, eps=eps)
        x = over_time(max_pool(x) if pool else x, steps, repeats)
        return spikes_of(x, tau, *constants[:2], in_place=repeats == 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes):
        y, weight, bias, mean, var, learned = ctx.saved_tensors
        tau = ctx.tau if learned is None else learned
        eps, batch_statistics, pool, steps, repeats = ctx.options
        x = F.batch_norm(y, mean, var, weight, bias, eps=eps)
        if pool:
            normed = x.contiguous(memory_format=torch.channels_last)
            x, indices = F.max_pool2d(normed, *POOL, return_indices=True)
        x = over_time(x, steps, repeats)
        in_place = repeats == 1
        grad, grad_tau = gradients_of(x, grad_spikes, tau, *ctx.constants, in_place=in_place)
        grad = grad.flatten(0, 1) if repeats == 1 else grad.sum(0)
        if pool:
            kernel, stride, padding = ([size, size] for size in POOL)
            grad = torch.ops.aten.max_pool2d_with_indices_backward(
                grad, normed, kernel, stride, padding, [1, 1], False, indices
            )
        needed = [True, weight is not None, bias is not None]
        grads = torch.ops.aten.native_batch_norm_backward(
            *(grad, y, weight, mean, var, mean, (var + eps).rsqrt()), batch_statistics, eps, needed
        )
        return *grads, None, None, grad_tau, None, None


def max_pool(x: Tensor) -> Tensor:
    """Of kernel 3, stride 2 and padding 1; on the CPU channels last, which PyTorch pools 15 times
    faster, and so is what follows."""
    if x.device.type == "cpu" and not _recorded():
        x = x.contiguous(memory_format=torch.channels_last)
    return F.max_pool2d(x, *POOL)


def _recorded() -> bool:
    return torch.compiler.is_compiling() or reference.exporting()


def over_time(x: Tensor, steps: int, repeats: int) -> Tensor:
    """[T * B, C, H, W], or [B, C, H, W] to be repeated, -> [T, B, C, H, W]"""
    x = x.unflatten(0, (steps // repeats, -1))
    return x.expand(steps, *x.shape[1:])


@torch.no_grad()
def _statistics(bn: nn.BatchNorm2d, y: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance [C] of the batch; the running statistics take them in."""
    check_values(y)
    n = y.numel() // y.shape[1]
    like = bn.weight if bn.running_mean is None else bn.running_mean  # in dtype, for 16-bit y
    spare = [like if like is None else torch.zeros_like(like) for _ in range(2)]
    mean, var = torch.batch_norm_update_stats(y, *spare, 0.0)
    if bn.training and bn.track_running_stats:
        if bn.num_batches_tracked is not None:  # as it is where a checkpointed batch runs again
            bn.num_batches_tracked.add_(1)
        momentum = bn.momentum
        if momentum is None:  # the average over all batches
            momentum = 1 / bn.num_batches_tracked.item()
        unbiased = var * (n * repeats / (n * repeats - 1))
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
        bn.running_var.lerp_(unbiased.to(bn.running_var.dtype), momentum)
    return mean, var
