"""The kernels as PyTorch operators: ``torch.ops.qkformer.bn_neuron`` and its backward.

Registered with fake implementations and autograd, so that ``torch.compile``, ``opcheck`` and CUDA
graphs work. Running statistics are all that is mutated, by :func:`batch_norm`.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkformer.neurons.cuda import launch, tables
from qkformer.neurons.cuda.layout import dense, dense_of_heads, empty_outputs, like
from qkformer.neurons.cuda.registry import below_autograd, differentiable, operator
from qkformer.neurons.reference import membrane_dtype


def _fake_batch_norm(y, *args):
    return y.new_empty((tables.NORM_ROWS, y.shape[1]), dtype=membrane_dtype(y.dtype))


@operator(
    "batch_norm",
    fake=_fake_batch_norm,
    mutates=("running_mean", "running_var", "batches"),
)
def batch_norm(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    batches: list[Tensor],
    eps: float,
    momentum: float | None,
    repeats: int,
) -> Tensor:
    """BatchNorm's map of each channel by the statistics of ``y``; running ones are updated.

    A constant: the dependence on ``y`` is part of :func:`bn_neuron`'s gradient. All but ``y`` and
    ``batches`` (int64) are in the membrane's dtype.

    Args:
        y: [N, C, H, W], without gradient.
        weight, bias: [C]; None for 1 and 0.
        conv_bias: [C], added to ``y`` in front; None for none.
        running_mean, running_var: [C / n] each, of n BatchNorms side by side; empty for none.
        batches: 0-dim each, how many batches were counted, one more afterwards; or empty.
        momentum: share of this batch in the running statistics. None is for the mean of all
            batches; then ``batches`` stays, and has this one.
        repeats: how often the running variance counts each value.

    Returns:
        [4, C], rows center, scale, shift and 1 / sqrt(variance + eps): BatchNorm of the sum with
        ``conv_bias`` is scale * (y - center) + shift.
    """
    running = running_mean, running_var, batches
    return tables.batch_norm(dense(y), weight, bias, conv_bias, running, eps, momentum, repeats)


def _fake_fixed_norm(weight, bias, conv_bias, running_mean, *args):
    channels = sum(mean.shape[0] for mean in running_mean)
    return running_mean[0].new_empty((tables.NORM_ROWS, channels))


@operator("fixed_norm", fake=_fake_fixed_norm)
def fixed_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    eps: float,
) -> Tensor:
    """BatchNorm's map by running statistics; arguments and result as for :func:`batch_norm`."""
    return tables.fixed_norm(weight, bias, conv_bias, (running_mean, running_var), eps)


def _fake_bn_neuron(y, *args):
    steps, repeated, pool, _, splits, heads = args[11:17]
    return empty_outputs(dense_of_heads(y, heads), steps, repeated, pool, splits, heads)


@operator("bn_neuron", fake=_fake_bn_neuron)
def bn_neuron_op(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
    residual: Tensor | None,
    learned: Tensor | None,
    table: Tensor | None,
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
    heads: int,
) -> list[Tensor]:
    """See :func:`bn_neuron`; ``learned`` is a 0-dim 1 / tau. ``weight`` and ``bias`` are for their
    gradients: their values are in ``table``."""
    neuron = launch.Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
    y = dense_of_heads(y, heads)
    call = launch.Call(y, table, conv_bias, neuron, steps, repeated, pool, splits, heads)
    return launch.forward(call, residual)


def _fake_bn_neuron_backward(grads, y, table, conv_bias, learned, *args):
    batch_statistics, _, heads, sums_needed = args[-4:]
    y = dense_of_heads(y, heads)
    channels = y.shape[1] if sums_needed or batch_statistics else 0
    rows = y.new_empty((tables.GRADIENT_ROWS, channels), dtype=membrane_dtype(y.dtype))
    return torch.empty_like(y), rows


@operator("bn_neuron_backward", fake=_fake_bn_neuron_backward)
def bn_neuron_backward_op(
    grads: list[Tensor],
    y: Tensor,
    table: Tensor | None,
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
    heads: int,
    sums_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of ``y``; and a table of [C] with those of ``bias``, ``weight``, ``learned`` (its
    sum over C) and ``conv_bias`` first, empty where none is needed."""
    y = dense_of_heads(y, heads)
    neuron = launch.Neuron(learned, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
    call = launch.Call(y, table, conv_bias, neuron, steps, repeated, pool, splits, heads)
    rows = y.new_empty((tables.GRADIENT_ROWS, 0), dtype=call.real)
    summed = sums_needed or batch_statistics
    if y.numel() == 0:
        wanted = y.shape[1] if summed else 0
        return torch.empty_like(y), rows.new_zeros((tables.GRADIENT_ROWS, wanted))
    grads = [grad.contiguous() if heads > 1 else like(grad, y) for grad in grads]
    count = tables.count(y) if batch_statistics else 0
    if pool:
        grad_max, places, partial = launch.pooled_backward(call, *grads)
    elif summed:
        partial = launch.reduce(call, grads)
    if summed:
        rows = tables.gradients(partial, table, count)
    through = rows if batch_statistics else None
    if pool:
        return launch.pooled_gather(call, grad_max, places, through), rows
    return launch.backward(call, grads, through), rows


class _BNNeuron(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight, bias, conv_bias, residual, learned, table, *constants):
        ctx.save_for_backward(y, table, conv_bias if table is None else None, learned)
        ctx.constants = constants
        with below_autograd():
            out = bn_neuron_op(y, weight, bias, conv_bias, residual, learned, table, *constants)
            return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad
        needs_sums = needs[1] or needs[2] or needs[3] or needs[5]
        dy, rows = bn_neuron_backward_op(grads, *ctx.saved_tensors, *ctx.constants, needs_sums)
        return (
            dy,
            rows[1] if needs[1] else None,
            rows[0] if needs[2] else None,
            rows[3] if needs[3] else None,
            grads[0] if needs[4] else None,
            rows[2].sum() if needs[5] else None,
            None,
            *[None] * len(ctx.constants),
        )


differentiable(bn_neuron_op, _BNNeuron)


def bn_neuron(
    y: Tensor,
    *,
    table: Tensor | None = None,
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
    batch_statistics: bool = False,
    splits: int = 1,
    heads: int = 1,
) -> list[Tensor]:
    """BatchNorm, optional 3x3 max pool of stride 2, neuron, optional addition, in one kernel.

    Keeps ``y`` for backward, which computes normalised values and membranes again.

    Args:
        y: [T * B, C, H, W], contiguous or channels last (others are copied).
        table: of :func:`batch_norm` or :func:`fixed_norm`, with these weight, bias and conv_bias;
            None for a neuron alone.
        weight, bias: [C], BatchNorm's, to get gradients.
        conv_bias: [C], added to ``y`` in front of all: the bias of a convolution that left it out,
            which saves a pass over memory.
        residual: [T * B, C, H', W'], added to the spikes.
        reciprocal_tau, v_threshold, v_reset, alpha, surrogate: as for
            :func:`qkformer.neurons.functional.spike_sequence`.
        steps: T.
        repeated: ``y`` is [B, C, H, W] and the same at every time step.
        pool: whether there is a max pool.
        batch_statistics: ``table`` is of ``y``, so its gradient passes through the statistics
            (training); otherwise they are constants.
        splits: the output's channels leave as that many equal shares, at most 3; not with a pool
            or a residual.
        heads: where above 1, of each of several shares; ``y`` is to be channels last.

    Returns:
        ``splits`` times [T * B, C / splits, H', W'], dtype and layout of ``y``; H' = ceil(H / 2)
        with a pool, else H. Of several heads [T * B, heads, H * W, C / splits / heads], contiguous.

    Raises:
        ValueError: 2^31 values or more in a time step; a residual of another shape.
    """
    real = membrane_dtype(y.dtype)
    learned = reciprocal_tau.to(real) if isinstance(reciprocal_tau, Tensor) else None
    return bn_neuron_op(
        y,
        in_real(weight, real),
        in_real(bias, real),
        in_real(conv_bias, real),
        residual,
        learned,
        table,
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
        heads,
    )


def in_real(parameter: Tensor | None, real: torch.dtype) -> Tensor | None:
    """As the kernels take it."""
    return None if parameter is None else parameter.to(real).contiguous()


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
    (spikes,) = bn_neuron(y, **constants, steps=len(x), repeated=repeated)
    spikes = spikes.view(x.shape)
    return spikes.permute(0, 1, 4, 2, 3) if last else spikes
