"""Layers of Meta-SpikeFormer and E-SpikeFormer, over [T, B, C, H, W], with membrane shortcuts.

A neuron is made by ``neuron()``: LIF or SFA.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import ConvBNNeuron, Residual
from qkformer.layers.attention import SpikeProduct, check_heads, merge_heads, split_heads
from qkformer.neurons import SFA

Neuron = Callable[[], nn.Module]


class Downsample(ConvBNNeuron):
    """(neuron ->) convolution with bias -> BatchNorm: the entrance of a stage.

    Args:
        neuron: in front; None for the image's.
    """

    def __init__(
        self, in_chans: int, dim: int, kernel_size: int, stride: int, neuron: nn.Module | None
    ):
        super().__init__(in_chans, dim, kernel_size, stride=stride, bias=True)
        self.in_neuron = neuron

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        return super().forward(x if self.in_neuron is None else self.in_neuron(x), time_steps)


class EachStep(nn.Module):
    """A layer of images, for every time step of [T, B, C, H, W]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def separable(dim: int, neuron: Neuron) -> nn.Module:
    """Meta-SpikeFormer's: 1x1 to 2C, neuron, depth-wise 7x7 and 1x1 as one linear map."""
    depthwise = nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
    return nn.Sequential(
        ConvBNNeuron(dim, 2 * dim, neuron=neuron()),
        EachStep(depthwise),
        ConvBNNeuron(2 * dim, dim),
    )


def spiking_separable(dim: int, neuron: Neuron, kernel_size: int) -> nn.Module:
    """E-SpikeFormer's: a neuron behind the depth-wise convolution too."""
    return nn.Sequential(
        ConvBNNeuron(dim, 2 * dim, neuron=neuron()),
        ConvBNNeuron(2 * dim, 2 * dim, kernel_size, groups=2 * dim, neuron=neuron()),
        ConvBNNeuron(2 * dim, dim),
    )


def channel_conv(dim: int, neuron: Neuron, bias: bool = False) -> nn.Module:
    """conv3 to 4C, BatchNorm, neuron, conv3 to C, BatchNorm."""
    return nn.Sequential(
        ConvBNNeuron(dim, 4 * dim, 3, bias=bias, neuron=neuron()),
        ConvBNNeuron(4 * dim, dim, 3, bias=bias),
    )


class RepConv(nn.Module):
    """1x1, BatchNorm, depth-wise 3x3, 1x1, two BatchNorms (, neuron).

    The 3x3 convolution sees a border of what BatchNorm makes of 0, by its running statistics.
    """

    def __init__(self, dim: int, neuron: nn.Module | None = None):
        super().__init__()
        self.first = ConvBNNeuron(dim, dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, groups=dim, bias=False)
        self.last = twice_normalised(ConvBNNeuron(dim, dim, neuron=neuron))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).flatten(0, 1)
        bordered = self._of_zero().view(-1, 1, 1) + F.pad(torch.zeros_like(y), (1, 1, 1, 1))
        bordered[..., 1:-1, 1:-1] = y
        return self.last(self.depthwise(bordered).unflatten(0, x.shape[:2]))

    def _of_zero(self) -> Tensor:
        bn = self.first.bn
        if isinstance(bn, nn.Identity):  # folded
            return self.first.conv.bias
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        return (bn.bias - bn.running_mean * scale).detach()


def wide_projection(dim: int, neuron: nn.Module | None = None) -> nn.Module:
    """1x1 to 1.5C, BatchNorm, 1x1 to C, two BatchNorms (, neuron): the large E-SpikeFormers'."""
    hidden = int(dim * 1.5)
    last = twice_normalised(ConvBNNeuron(hidden, dim, neuron=neuron))
    return nn.Sequential(ConvBNNeuron(dim, hidden), last)


def twice_normalised(layer: ConvBNNeuron) -> ConvBNNeuron:
    layer.bn = nn.Sequential(layer.bn, nn.BatchNorm2d(layer.bn.num_features))
    return layer


class ProductAttention(nn.Module):
    """neuron(scale * q k^T v) per head, then a projection; of any projections.

    Args:
        q, k, v: to spikes [T, B, C, H, W], v to any multiple of C.
        neuron: of the product.
        proj: behind it.
        num_heads, scale: of the product.
    """

    def __init__(
        self,
        q: nn.Module,
        k: nn.Module,
        v: nn.Module,
        neuron: nn.Module,
        proj: nn.Module,
        num_heads: int,
        scale: float,
    ):
        super().__init__()
        self.q, self.k, self.v, self.attn_neuron, self.proj = q, k, v, neuron, proj
        self.num_heads, self.product = num_heads, SpikeProduct(scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if isinstance(self.attn_neuron, SFA) and self.attn_neuron.unrolled:
            # all spikes of k and v count for each of q's: the product is of three integers
            k, v = (spikes.mean(0, keepdim=True) for spikes in (k, v))
        y = self.product(*(split_heads(spikes, self.num_heads) for spikes in (q, k, v)))
        return self.proj(self.attn_neuron(merge_heads(y, x.shape[3:])))


def wide_value_attention(dim: int, num_heads: int, neuron: Neuron) -> ProductAttention:
    """E-SpikeFormer's: v has 4C channels."""
    check_heads(dim, num_heads)
    return ProductAttention(
        *(ConvBNNeuron(dim, width * dim, neuron=neuron()) for width in (1, 1, 4)),
        neuron(),
        ConvBNNeuron(4 * dim, dim),
        num_heads,
        2 / (dim / num_heads) ** 0.5,
    )


def projected_attention(
    dim: int, num_heads: int, neuron: Callable[..., nn.Module], projection: Callable, **mask: float
) -> ProductAttention:
    """Meta-SpikeFormer's (of RepConv) and the large E-SpikeFormers' (of wide_projection).

    ``mask``: arguments of the product's neuron.
    """
    check_heads(dim, num_heads)
    qkv = (projection(dim, neuron()) for _ in "qkv")
    return ProductAttention(*qkv, neuron(**mask), projection(dim), num_heads, 0.125)


class ChannelScale(nn.Module):
    """A learned factor for every channel."""

    def __init__(self, dim: int, start: float = 1e-6):
        super().__init__()
        self.factor = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(-1, 1, 1)


def block(neuron: Neuron, drop_path: float, **branches: nn.Module) -> nn.Sequential:
    """Membrane shortcuts around branches, one after the other."""
    residual = partial(Residual, wiring="ms", neuron=neuron, drop_path=drop_path)
    layers = nn.Sequential()
    for name, branch in branches.items():
        layers.add_module(name, residual(branch))
    return layers
