"""Models as they are deployed: BatchNorm folded into the convolutions, weights in int8."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qkformer.layers import ConvBNNeuron

Model = TypeVar("Model", bound=nn.Module)


def fuse_for_inference(model: Model) -> Model:
    """A copy of the model without BatchNorm, which gives the same outputs faster.

    In evaluation BatchNorm is a factor and an offset per channel; both go into the weights and the
    bias of the convolution in front of it. Outputs are those of ``model.eval()`` but for rounding,
    so a neuron within rounding of its threshold may fire where it did not. Weights are channels
    last.

    Fold before reducing precision: ``fuse_for_inference(model).half()`` or ``.bfloat16()``. Neurons
    integrate 16-bit currents in float32. On a GPU, small batches gain from a CUDA graph::

        fused = fuse_for_inference(model).cuda().half()
        images = torch.randn(1, 3, 224, 224, device="cuda", dtype=torch.half)
        with torch.inference_mode():
            fused = torch.cuda.make_graphed_callables(fused, (images,))

    Args:
        model: any module that holds ConvBNNeurons: a registered model, a layer, a network of yours.
            It stays as it is, on its device, in its mode.

    Returns:
        A copy in eval mode, with the same interface and shapes. BatchNorms that follow no
        convolution of a ConvBNNeuron stay. The copy is for inference: training it would train
        another network, and checkpoints of ``model`` no longer fit it. A folded model is copied.

    Raises:
        TypeError: nothing in the model is a ConvBNNeuron.
        ValueError: a BatchNorm has no running statistics, so its output depends on the batch.
    """
    if not any(isinstance(module, ConvBNNeuron) for module in model.modules()):
        raise TypeError(
            f"fuse_for_inference expects a model made of qkformer.layers.ConvBNNeuron, "
            f"got {type(model).__name__} without any"
        )
    fused = copy.deepcopy(model).eval()
    for name, module in fused.named_modules():
        if not isinstance(module, ConvBNNeuron) or isinstance(module.bn, nn.Identity):
            continue
        for bn in module.bn if isinstance(module.bn, nn.Sequential) else [module.bn]:
            if bn.running_mean is None:
                raise ValueError(
                    f"{name}.bn keeps no running statistics (track_running_stats=False): it "
                    "normalises each batch by itself, which no weights can do"
                )
            module.conv = fuse_conv_bn_eval(module.conv, bn)
        module.bn = nn.Identity()
    return fused.to(memory_format=torch.channels_last)


def quantize_int8(model: Model) -> Model:
    """A folded copy whose convolutions and linear layers have int8 weights.

    A weight is ``scale * n``: n is an integer from -127 to 127, nearest to what it was, and the
    scale is one for every output channel, so that its largest weight has n = 127 or -127. Biases
    stay, and nothing needs calibration: spikes are 0 and 1, and a sum over them is an integer times
    the scale.

    Args:
        model: as for :func:`fuse_for_inference`, whose errors this raises.

    Returns:
        A copy in eval mode. ``layer.weight`` is the rounded weight, in the model's dtype;
        ``layer.parametrizations.weight.original0`` are the integers, ``original1`` the scales.
    """
    quantized = fuse_for_inference(model).requires_grad_(False)
    for module in list(quantized.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and not parametrize.is_parametrized(module):
            parametrize.register_parametrization(module, "weight", Scaled(), unsafe=True)
    return quantized


class Scaled(nn.Module):
    """Integers, and a scale for each output channel, as a weight [C', ...]."""

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        return integers.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.flatten(1).abs().amax(1)
        scale = torch.where(largest > 0, largest, 1).view(-1, *[1] * (weight.ndim - 1)) / 127
        return (weight / scale).round().to(torch.int8), scale
