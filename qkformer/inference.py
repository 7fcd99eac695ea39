"""Models as they are deployed: BatchNorm folded into the convolutions."""

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qkformer.layers import ConvBNNeuron

Model = TypeVar("Model", bound=nn.Module)


def fuse_for_inference(model: Model) -> Model:
    """A copy of the model without BatchNorm, which gives the same outputs faster.

    In evaluation BatchNorm is a factor and an offset per channel; both go into the weights and the
    bias of the convolution in front of it. Outputs are those of ``model.eval()`` but for rounding,
    so a neuron within rounding of its threshold may fire where it did not.

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
    return fused
