"""Patch embeddings: SPEDS (spiking patch embedding with deformed shortcut), SPS and their kin.

An embedding is written down as an EmbedSpec; the functions below are the published ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from qkformer.layers.block import Residual, Wiring, check_wiring
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.neurons import LIF, SpikingNeuron

Pool = Literal["before", "after"] | None  # where a max pool is, seen from the neuron


@dataclass(frozen=True)
class Conv3x3:
    """One 3x3 convolution of an embedding with its BatchNorm, pool and neuron."""

    out_chans: int
    stride: int = 1
    pool: Pool = None

    @property
    def downsampling(self) -> int:
        return self.stride * (2 if self.pool else 1)


@dataclass(frozen=True)
class EmbedSpec:
    """A chain of 3x3 convolutions, and where a shortcut leaves it or what follows it.

    Attributes:
        convs: the chain.
        shortcut_after: number of convolutions before the 1x1 shortcut leaves; None for no shortcut.
        shortcut_pool: the shortcut reaches the lower resolution by a max pool, not by its stride.
        rpe: behind the chain is a residual 3x3 convolution, a relative positional embedding.
    """

    convs: tuple[Conv3x3, ...]
    shortcut_after: int | None = None
    shortcut_pool: bool = False
    rpe: bool = False

    @property
    def downsampling(self) -> int:
        return math.prod(conv.downsampling for conv in self.convs)

    def without_shortcut(self) -> "EmbedSpec":
        return replace(self, shortcut_after=None)


def imagenet_stem(dim: int) -> EmbedSpec:
    """QKFormer and MS-QKFormer on ImageNet: to 1/4 resolution."""
    convs = (Conv3x3(dim // 2, pool="before"), Conv3x3(dim, pool="before"), Conv3x3(dim))
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
    pooled = tuple(Conv3x3(dim // n, pool="before") for n in (4, 2, 1))
    return EmbedSpec((Conv3x3(dim // 8), *pooled), shortcut_after=2)


def pool_first(dim: int) -> EmbedSpec:
    """Between stages, pool behind the first convolution: QKFormer, MS-QKFormer on ImageNet."""
    return EmbedSpec((Conv3x3(dim, pool="before"), Conv3x3(dim)), shortcut_after=0)


def pool_last(dim: int) -> EmbedSpec:
    """Between stages, pool behind the second convolution: QKFormer, MS-QKFormer elsewhere."""
    return EmbedSpec((Conv3x3(dim), Conv3x3(dim, pool="before")), shortcut_after=0)


def pool_both(dim: int) -> EmbedSpec:
    """Between stages of Max-Former: pool behind the first convolution and in the shortcut."""
    return replace(pool_first(dim), shortcut_pool=True)


def stride_first(dim: int) -> EmbedSpec:
    """Between stages without a pool, for NIR; ours, not published."""
    return EmbedSpec((Conv3x3(dim, stride=2), Conv3x3(dim)), shortcut_after=0)


Pools = tuple[bool, bool, bool, bool]


def sps(dim: int, pools: Pools, pool: Pool = "after") -> EmbedSpec:
    """Patch splitting: Spikformer, S-Transformer (pools behind neurons), CML Spikformer (in front).

    Args:
        pools: which of the four convolutions are pooled.
    """
    return EmbedSpec(_widening(dim, pools, pool), rpe=True)


def five_convs(dim: int, pools: Pools, pool: Pool = "after") -> EmbedSpec:
    """Spikingformer's (pools behind neurons) and CML Spikingformer's (in front)."""
    return EmbedSpec((*_widening(dim, pools, pool), Conv3x3(dim)))


def _widening(dim: int, pools: Pools, pool: Pool) -> tuple[Conv3x3, ...]:
    if not isinstance(dim, int) or dim < 1 or dim % 8:
        raise ValueError(f"embed_dim must be a multiple of 8, got {dim!r}")
    return tuple(
        Conv3x3(dim // n, pool=pool if pooled else None)
        for n, pooled in zip((8, 4, 2, 1), pools, strict=True)
    )


class PatchEmbed(nn.Module):
    """An embedding over [T, B, C, H, W].

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
        aba = wiring == "aba"
        self.shortcut_after = spec.shortcut_after
        self.in_neuron = neuron() if wiring == "ms" and not stem else None
        last = len(spec.convs) - 1
        self.convs = nn.ModuleList()
        chans = in_chans
        for i, conv in enumerate(spec.convs):
            if i == spec.shortcut_after:
                self.shortcut = _shortcut(chans, spec, neuron=neuron() if aba else None)
            self.convs.append(
                ConvBNNeuron(
                    chans,
                    conv.out_chans,
                    kernel_size=3,
                    stride=conv.stride,
                    pool=conv.pool,
                    neuron=neuron() if aba or i < last else None,
                )
            )
            chans = conv.out_chans
        self.out_neuron = neuron() if wiring == "pa" else None
        self.rpe = None
        if spec.rpe:
            branch = ConvBNNeuron(chans, chans, kernel_size=3, neuron=neuron() if aba else None)
            self.rpe = Residual(branch, wiring, neuron=neuron)

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
        if self.out_neuron is not None:
            x = self.out_neuron(x)
        return self.rpe(x) if self.rpe is not None else x


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
