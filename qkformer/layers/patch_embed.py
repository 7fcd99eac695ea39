"""Patch embeddings: SPEDS (spiking patch embedding with deformed shortcut) and Spikformer's SPS.

An embedding is written down as an EmbedSpec; the functions below are the published ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from qkformer.layers.block import Residual, Wiring, check_wiring
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.neurons import LIF, SpikingNeuron


@dataclass(frozen=True)
class Conv3x3:
    """One 3x3 convolution of an embedding with its BatchNorm, pool and neuron."""

    out_chans: int
    stride: int = 1
    pool: bool = False

    @property
    def downsampling(self) -> int:
        return self.stride * (2 if self.pool else 1)


@dataclass(frozen=True)
class EmbedSpec:
    """A chain of 3x3 convolutions and the place where the 1x1 shortcut leaves it.

    Attributes:
        convs: the chain.
        shortcut_after: number of convolutions before the shortcut leaves; None for no shortcut.
        shortcut_pool: the shortcut reaches the lower resolution by a max pool, not by its stride.
    """

    convs: tuple[Conv3x3, ...]
    shortcut_after: int | None = None
    shortcut_pool: bool = False

    @property
    def downsampling(self) -> int:
        return math.prod(conv.downsampling for conv in self.convs)

    def without_shortcut(self) -> "EmbedSpec":
        return replace(self, shortcut_after=None)


def imagenet_stem(dim: int) -> EmbedSpec:
    """QKFormer and MS-QKFormer on ImageNet: to 1/4 resolution."""
    convs = (Conv3x3(dim // 2, pool=True), Conv3x3(dim, pool=True), Conv3x3(dim))
    return EmbedSpec(convs, shortcut_after=1)


def strided_stem(dim: int) -> EmbedSpec:
    """Max-Former on ImageNet: to 1/4 resolution by strides."""
    convs = (Conv3x3(dim // 2, stride=2), Conv3x3(dim, stride=2), Conv3x3(dim))
    return EmbedSpec(convs, shortcut_after=1)


def cifar_stem(dim: int) -> EmbedSpec:
    """All families on CIFAR: full resolution."""
    return EmbedSpec((Conv3x3(dim // 2), Conv3x3(dim)), shortcut_after=1)


def dvs_stem(dim: int) -> EmbedSpec:
    """All families on event data: to 1/8 resolution."""
    pooled = tuple(Conv3x3(dim // n, pool=True) for n in (4, 2, 1))
    return EmbedSpec((Conv3x3(dim // 8), *pooled), shortcut_after=2)


def pool_first(dim: int) -> EmbedSpec:
    """Between stages, pool behind the first convolution: QKFormer, MS-QKFormer on ImageNet."""
    return EmbedSpec((Conv3x3(dim, pool=True), Conv3x3(dim)), shortcut_after=0)


def pool_last(dim: int) -> EmbedSpec:
    """Between stages, pool behind the second convolution: QKFormer, MS-QKFormer elsewhere."""
    return EmbedSpec((Conv3x3(dim), Conv3x3(dim, pool=True)), shortcut_after=0)


def pool_both(dim: int) -> EmbedSpec:
    """Between stages of Max-Former: pool behind the first convolution and in the shortcut."""
    return replace(pool_first(dim), shortcut_pool=True)


class SPEDS(nn.Module):
    """Spiking patch embedding with deformed shortcut, over [T, B, C, H, W].

    The wiring (see :class:`qkformer.layers.block.Residual`) says where the neurons are: behind
    every BatchNorm (aba); behind the sum instead of its two summands (pa); in front of every
    convolution but the image's, the shortcut leaving behind a neuron (ms).

    Args:
        in_chans: channels of the input.
        spec: convolutions and shortcut.
        wiring: "aba", "pa" or "ms".
        stem: the input is an image or event frame, not another layer's output.
        neuron: makes a neuron.
    """

    def __init__(
        self,
        in_chans: int,
        spec: EmbedSpec,
        *,
        wiring: Wiring = "aba",
        stem: bool = False,
        neuron: Callable[..., SpikingNeuron] = LIF,
    ):
        super().__init__()
        check_wiring(wiring)
        self.shortcut_after = spec.shortcut_after
        self.in_neuron = neuron() if wiring == "ms" and not stem else None
        last = len(spec.convs) - 1
        self.convs = nn.ModuleList()
        chans = in_chans
        for i, conv in enumerate(spec.convs):
            if i == spec.shortcut_after:
                self.shortcut = _shortcut(chans, spec, neuron=neuron() if wiring == "aba" else None)
            self.convs.append(
                ConvBNNeuron(
                    chans,
                    conv.out_chans,
                    kernel_size=3,
                    stride=conv.stride,
                    pool="before" if conv.pool else None,
                    neuron=neuron() if wiring == "aba" or i < last else None,
                )
            )
            chans = conv.out_chans
        self.out_neuron = neuron() if wiring == "pa" else None

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """
        Args:
            x: [T, B, C, H, W], or [1, B, C, H, W] for a static image.
            time_steps: T, to which a static image is repeated.

        Returns:
            [T, B, C', H / downsampling, W / downsampling]
        """
        if self.in_neuron is not None:
            x = self.in_neuron(x)
        branch = None
        for i, conv in enumerate(self.convs):
            if i == self.shortcut_after:
                branch = x
            x = conv(x, time_steps)
        if branch is not None:
            x = self.shortcut(branch, time_steps, residual=x)
        return x if self.out_neuron is None else self.out_neuron(x)


def _shortcut(in_chans: int, spec: EmbedSpec, neuron: SpikingNeuron | None) -> ConvBNNeuron:
    """The 1x1 convolution from where the shortcut leaves to the end of the chain."""
    remaining = math.prod(conv.downsampling for conv in spec.convs[spec.shortcut_after :])
    return ConvBNNeuron(
        in_chans,
        spec.convs[-1].out_chans,
        stride=1 if spec.shortcut_pool else remaining,
        pool="before" if spec.shortcut_pool else None,
        neuron=neuron,
    )


@dataclass(frozen=True)
class SPSSpec:
    """Spikformer's embedding: output channels, and which of the four convolutions are pooled."""

    dim: int
    pools: tuple[bool, bool, bool, bool] = (True, True, True, True)

    @property
    def downsampling(self) -> int:
        return 2 ** sum(self.pools)


class SPS(nn.Module):
    """Spikformer's patch splitting: four 3x3 convolutions and a residual one (`rpe`).

    Args:
        in_chans: channels of the input.
        spec: the convolutions have dim / 8, / 4, / 2 and dim channels; pools are behind neurons.
        neuron: makes a neuron.
    """

    def __init__(self, in_chans: int, spec: SPSSpec, *, neuron: Callable[..., SpikingNeuron] = LIF):
        super().__init__()
        dim = spec.dim
        widths = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        self.convs = nn.ModuleList(
            ConvBNNeuron(
                widths[i],
                widths[i + 1],
                kernel_size=3,
                pool="after" if spec.pools[i] else None,
                neuron=neuron(),
            )
            for i in range(4)
        )
        self.rpe = Residual(ConvBNNeuron(dim, dim, kernel_size=3, neuron=neuron()))

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """As :meth:`SPEDS.forward`."""
        for conv in self.convs:
            x = conv(x, time_steps)
        return self.rpe(x)
