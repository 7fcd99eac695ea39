"""conv -> BatchNorm -> (max pool) -> (neuron) over [T, B, C, H, W].

The one place where time folds into batch. Everything a model computes goes through it, but for the
attention products.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import fused, recompute
from qkformer.neurons import SpikingNeuron

FEW_CHANNELS = 16  # less than AVX-512's vector of float32


class ConvBNNeuron(nn.Module):
    """Convolution, BatchNorm, optional 2x max pool (kernel 3), optional neuron.

    Args:
        in_chans, out_chans: channels.
        kernel_size: odd; padding keeps the resolution.
        stride, groups, bias: of the convolution.
        pool: where the max pool halves the resolution: before the neuron, after it, or nowhere.
        neuron: multi-step neuron; None leaves the membrane current.

    Shape: [T, B, C, H, W] -> [T, B, C', H', W'] with H' = ceil(H / downsampling).
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        pool: Literal["before", "after"] | None = None,
        neuron: SpikingNeuron | None = None,
    ):
        super().__init__()
        if pool not in ("before", "after", None):
            raise ValueError(f"pool must be 'before', 'after' or None, got {pool!r}")
        samples = kernel_size == 1 < stride and in_chans < FEW_CHANNELS
        self.conv = (SampledConv2d if samples else nn.Conv2d)(
            in_chans,
            out_chans,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=bias,
        )
        self.bn = nn.BatchNorm2d(out_chans)
        self.pool = pool
        self.neuron = neuron

    def forward(
        self, x: Tensor, time_steps: int | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: [T, B, C, H, W], or [1, B, C, H, W] for an input that is the same at every time step.
            time_steps: T, to which such an input is repeated: after the pool, before the neuron.
            residual: [T, B, C', H', W'], added to the output; CuPy's kernels do it on the way.
        """
        steps = time_steps or len(x)
        if steps > len(x) and isinstance(self.bn, nn.SyncBatchNorm):
            x = x.expand(steps, *x.shape[1:])  # its sample count is known to the other ranks only
        repeats = steps // len(x)
        x = x.flatten(0, 1)
        if fused.fuses(self.bn, self.neuron, x):
            y, bias = fused.convolve(self.conv, x)
            options = dict(conv_bias=bias, steps=steps, repeats=repeats)
            options["pool"] = self.pool == "before"
            if self.pool != "after":
                return fused.bn_neuron(self.bn, self.neuron, y, residual=residual, **options)
            y = fused.bn_neuron(self.bn, self.neuron, y, **options)
        else:
            y = self._torch(self.conv(x), steps, repeats)
        if self.pool == "after":
            y = recompute.max_pool(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return y if residual is None else residual + y

    def _torch(self, y: Tensor, steps: int, repeats: int) -> Tensor:
        """What follows the convolution, in plain PyTorch; [T, B, C, H, W]."""
        pool = self.pool == "before"
        if recompute.fuses(self.conv, self.bn, self.neuron, y):
            options = dict(steps=steps, pool=pool, repeats=repeats)
            return recompute.bn_neuron(self.bn, self.neuron, y, **options)
        y = self._batch_norm(y, repeats)
        y = recompute.over_time(recompute.max_pool(y) if pool else y, steps, repeats)
        return y if self.neuron is None else self.neuron(y)

    def _batch_norm(self, x: Tensor, repeats: int) -> Tensor:
        """BatchNorm of [B, C, H, W] that counts every sample ``repeats`` times.

        Mean and variance of a batch do not change when it is repeated, nor do the gradients. The
        running variance does: it is the unbiased one, n / (n - 1), of n = B H W or repeats B H W.
        """
        bn = self.bn
        counts = isinstance(bn, nn.BatchNorm2d) and bn.training and bn.track_running_stats
        if repeats == 1 or not counts:  # evaluation; frozen, folded or replaced BatchNorm
            return bn(x)
        past = bn.running_var.clone()
        y = bn(x)
        momentum = 1 / bn.num_batches_tracked if bn.momentum is None else bn.momentum
        past = past * (1 - momentum)
        n = x.numel() // x.shape[1]
        unbias = repeats * (n - 1) / (repeats * n - 1)
        # .data: autograd keeps the buffer for backward, though it reads it in eval mode only
        bn.running_var.data.copy_(past + (bn.running_var - past) * unbias)
        return y


class SampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution that on the CPU leaves out first what its stride leaves out.

    The same function, around a fault of oneDNN's: with few channels, channels last, the gradient of
    the weight is computed outside of its memory, on processors with AVX2 below 8 channels, with
    AVX-512 below 16; see https://github.com/uxlfoundation/oneDNN/issues/6035. torch.compile chooses
    channels last by itself. ``tests/layers/test_onednn.py`` tells when it is mended.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu":
            return super()._conv_forward(input, weight, bias)
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], weight, bias, groups=self.groups)
