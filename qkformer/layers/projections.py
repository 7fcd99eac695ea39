"""Several 1x1 layers of one input, as the q, k and v of attention: one product where that pays."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import fused
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.neurons import IF, LIF
from qkformer.neurons.cuda.layout import channels_last


def project(layers: Sequence[ConvBNNeuron], x: Tensor) -> Sequence[Tensor]:
    """``[layer(x) for layer in layers]``, in one product and one kernel where CuPy's kernels run.

    The input is read once for all, and there are fewer launches. Without the kernels the outputs
    would have to be taken apart again, so there every layer runs by itself.

    Args:
        layers: two or three 1x1 layers with as many channels each; their parameters stay where
            they are.
        x: [T, B, C, H, W].

    Returns:
        [T, B, C', H, W] of every layer.
    """
    if not _together(layers, x):
        return [layer(x) for layer in layers]
    y, options = _product(layers, x)
    return fused.bn_neurons(y=y, **options)


def project_to_heads(layers: Sequence[ConvBNNeuron], x: Tensor, heads: int) -> Sequence[Tensor]:
    """:func:`split_heads` of each of :func:`project`; the kernel puts the heads apart by itself."""
    if not _together(layers, x):
        return [split_heads(layer(x), heads) for layer in layers]
    y, options = _product(layers, x)
    if heads == 1 or not channels_last(y):
        return [split_heads(share, heads) for share in fused.bn_neurons(y=y, **options)]
    return [share.mT for share in fused.bn_neurons(y=y, heads=heads, **options)]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[T, B, C, H, W] -> [T, B, heads, C / heads, N], matrices that a product takes as they are.

    In channels last the heads lie between the tokens. A batched product knows one distance from
    matrix to matrix, not one between samples and another between heads, so they are copied apart.
    """
    x = x.flatten(3)
    if x.is_contiguous():
        return x.unflatten(2, (num_heads, -1))
    return x.mT.unflatten(3, (num_heads, -1)).transpose(2, 3).contiguous().mT


def _product(layers: Sequence[ConvBNNeuron], x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The output of all convolutions, and what :func:`fused.bn_neurons` is told besides."""
    convs = [layer.conv for layer in layers]
    bias = None if convs[0].bias is None else torch.cat([conv.bias for conv in convs])
    y = F.conv2d(x.flatten(0, 1), torch.cat([conv.weight for conv in convs]))
    bns = [layer.bn for layer in layers]
    return y, dict(bns=bns, neuron=layers[0].neuron, steps=len(x), conv_bias=bias)


def _together(layers: Sequence[ConvBNNeuron], x: Tensor) -> bool:
    return all(_fuses(layer, x) for layer in layers) and _alike(layers)


def _fuses(layer: ConvBNNeuron, x: Tensor) -> bool:
    plain = type(layer) is ConvBNNeuron and type(layer.conv) is nn.Conv2d and layer.pool is None
    hooked = fused.hooked(layer) or fused.hooked(layer.conv)
    return plain and not hooked and fused.fuses(layer.bn, layer.neuron, x.flatten(0, 1))


def _alike(layers: Sequence[ConvBNNeuron]) -> bool:
    """Whether the layers differ in nothing but their parameters' values; PLIF's tau is one.

    Not where one BatchNorm stands in two: its statistics are of one batch after the other.
    """
    kinds = {type(layer.neuron) for layer in layers}
    apart = len({id(layer.bn) for layer in layers}) == len(layers)
    return apart and kinds in ({LIF}, {IF}) and len({_traits(layer) for layer in layers}) == 1


def _traits(layer: ConvBNNeuron) -> tuple:
    conv, bn = layer.conv, layer.bn
    of_conv = (conv.kernel_size, conv.stride, conv.groups, conv.out_channels, conv.bias is None)
    of_norm = (type(bn),)
    if isinstance(bn, nn.BatchNorm2d):
        tracks = bn.track_running_stats, bn.running_mean is None, bn.num_batches_tracked is None
        of_norm = (bn.eps, bn.momentum, bn.training, *tracks, bn.weight is None, bn.bias is None)
    return (*of_conv, *of_norm, *layer.neuron.constants.values())
