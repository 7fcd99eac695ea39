"""Layers over [T, B, C, H, W]; each can be taken on its own."""

from qkformer.layers.attention import (
    QKAttention,
    QKChannelAttention,
    QKTokenAttention,
    SpikeDrivenAttention,
    SpikingSelfAttention,
)
from qkformer.layers.block import MIXERS, Residual, SpikingBlock, depthwise_conv, drop_path
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.layers.mlp import SpikingMLP
from qkformer.layers.patch_embed import Conv3x3, EmbedSpec, PatchEmbed

__all__ = [
    "MIXERS",
    "Conv3x3",
    "ConvBNNeuron",
    "EmbedSpec",
    "PatchEmbed",
    "QKAttention",
    "QKChannelAttention",
    "QKTokenAttention",
    "Residual",
    "SpikeDrivenAttention",
    "SpikingBlock",
    "SpikingMLP",
    "SpikingSelfAttention",
    "depthwise_conv",
    "drop_path",
]
