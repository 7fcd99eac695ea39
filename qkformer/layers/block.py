"""Residual wiring, and the block made of two residual branches: token mixer and MLP."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from qkformer.layers.attention import (
    QKAttention,
    QKChannelAttention,
    QKTokenAttention,
    SpikeDrivenAttention,
    SpikingSelfAttention,
)
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.layers.mlp import SpikingMLP
from qkformer.neurons import LIF, SpikingNeuron

Wiring = Literal["aba", "pa", "ms"]
WIRINGS = ("aba", "pa", "ms")
# Branches that take the shortcut as `residual`, and add it where they write their last spikes.
ADD_RESIDUALS = (ConvBNNeuron, QKAttention, SpikingMLP, SpikingSelfAttention)


class Residual(nn.Module):
    """A branch and its shortcut.

    - aba, activation before addition (QKFormer): ``x + branch(x)``, the branch ends in a neuron,
      the sum holds small integers.
    - pa, pre-activation as the formula of QKFormer's ablation reads: ``neuron(x + branch(x))``, the
      branch ends in BatchNorm. Its authors call ms by that name too (QKFormer's issue 5).
    - ms, membrane shortcut (MS-QKFormer, Max-Former): ``x + branch(neuron(x))``, the branch ends
      in BatchNorm and x is a membrane current.

    Args:
        branch: module on [T, B, C, H, W] that keeps the shape.
        wiring: "aba", "pa" or "ms".
        neuron: makes a neuron.
        drop_path: probability with which a sample skips the branch in training.

    Raises:
        ValueError: unknown wiring.
    """

    def __init__(
        self,
        branch: nn.Module,
        wiring: Wiring = "aba",
        *,
        neuron: Callable[..., SpikingNeuron] = LIF,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.branch = branch
        self.wiring = check_wiring(wiring)
        self.neuron = None if wiring == "aba" else neuron()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        y = self.neuron(x) if self.wiring == "ms" else x
        if self.training and self.drop_path > 0:
            y = x + drop_path(self.branch(y), self.drop_path)
        elif isinstance(self.branch, ADD_RESIDUALS):
            y = self.branch(y, residual=x)
        else:
            y = x + self.branch(y)
        return self.neuron(y) if self.wiring == "pa" else y

    def extra_repr(self) -> str:
        return f"wiring={self.wiring}, drop_path={self.drop_path:.3g}"


def check_wiring(wiring: str) -> Wiring:
    """``wiring``, or ValueError if there is none of that name."""
    if wiring not in WIRINGS:
        raise ValueError(f"residual wiring must be one of {WIRINGS}, got {wiring!r}")
    return wiring


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Stochastic depth on [T, B, ...]: zero whole samples, scale the others by 1 / (1 - p)."""
    # One mask per sample: a mask over the first two axes would drop single time steps.
    kept = torch.rand(1, x.shape[1], *[1] * (x.ndim - 2), device=x.device) >= probability
    return x * (kept.to(x.dtype) / (1 - probability))


def depthwise_conv(
    dim: int,
    num_heads: int,
    *,
    kernel_size: int,
    neuron: Callable[..., SpikingNeuron] = LIF,
    out_neuron: bool = True,
) -> ConvBNNeuron:
    """Max-Former's local mixer: depth-wise convolution with bias, BatchNorm (, neuron).

    ``num_heads`` is part of every mixer's call; a convolution has none.
    """
    return ConvBNNeuron(
        dim, dim, kernel_size, groups=dim, bias=True, neuron=neuron() if out_neuron else None
    )


# Called as MIXERS[name](dim, num_heads, neuron=..., out_neuron=...); "ssa" also takes its options.
# None: a block without token mixing.
MIXERS: dict[str, Callable[..., nn.Module] | None] = {
    "token_qk": QKTokenAttention,
    "channel_qk": QKChannelAttention,
    "ssa": SpikingSelfAttention,
    "sdsa": SpikeDrivenAttention,
    "sdsa_pooled": partial(SpikeDrivenAttention, pooled=True),
    "dwconv3": partial(depthwise_conv, kernel_size=3),
    "dwconv5": partial(depthwise_conv, kernel_size=5),
    "dwconv7": partial(depthwise_conv, kernel_size=7),
    "none": None,
}


class SpikingBlock(nn.Sequential):
    """Residual token mixer, then residual MLP.

    Args:
        dim, num_heads: channels C and attention heads.
        mixer: a name of ``MIXERS``.
        mlp_ratio: hidden width of the MLP over ``dim``.
        wiring, neuron, drop_path: as for :class:`Residual`.
        ssa_options: ``scale``, ``qkv_bias``, ``ssa`` of SpikingSelfAttention.

    Shape: [T, B, C, H, W] -> the same.

    Raises:
        ValueError: ``mlp_ratio`` leaves the MLP no hidden channel; errors of the mixer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mixer: str,
        mlp_ratio: float = 4.0,
        wiring: Wiring = "aba",
        neuron: Callable[..., SpikingNeuron] = LIF,
        drop_path: float = 0.0,
        ssa_options: dict | None = None,
    ):
        residual = partial(Residual, wiring=wiring, neuron=neuron, drop_path=drop_path)
        out_neuron = wiring == "aba"
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} of {dim} channels is less than a channel")
        branches = OrderedDict()
        if MIXERS[mixer] is not None:
            options = (ssa_options or {}) if mixer == "ssa" else {}
            branches["mixer"] = residual(
                MIXERS[mixer](dim, num_heads, neuron=neuron, out_neuron=out_neuron, **options)
            )
        if wiring == "ms" and hidden_dim == dim:
            # As published: where the width allows it, each half of the MLP has its own shortcut.
            branches["fc1"] = residual(ConvBNNeuron(dim, dim, bias=True))
            branches["fc2"] = residual(ConvBNNeuron(dim, dim, bias=True))
        else:
            branches["mlp"] = residual(
                SpikingMLP(dim, hidden_dim, neuron=neuron, out_neuron=out_neuron)
            )
        super().__init__(branches)
