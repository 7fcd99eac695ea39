"""Test vectors for those who build hardware: one sample in and out of every layer."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qkformer.export.subject import ExportError, prepare
from qkformer.files import replacing
from qkformer.layers.attention import SpikeMask, SpikeProduct
from qkformer.models import SpikingNetwork
from qkformer.neurons import FIRING

Record = tuple[dict[str, Any], dict[str, np.ndarray]]  # facts, and arrays by a word
EQUATIONS = (
    "h = v + (x - (v - v_reset)) * reciprocal_tau, or v + x where that is null; a spike where "
    "h >= v_threshold; then v is v_reset where a spike was, else h; v = v_reset at the start"
)


@torch.no_grad()
def export_trace(model: SpikingNetwork, x: Tensor, path: str | os.PathLike) -> dict[str, Any]:
    """Write one sample's way through a model, an .npz, with BatchNorm folded.

    For every convolution and linear layer in the order in which they run: its input (spikes, or
    their sums, as integers wherever they are), weight and bias, and its output; for every neuron
    the current and the spikes; for every attention its operands and result. A layer's arrays are
    called by its path and one of these words; [T, ...] throughout, or [1, ...] where all time steps
    of an image share one result. Of a model from ``quantize_int8``, the weights are int8, with
    their scale, and the output is ``scale * accumulator + bias``, with the integer accumulator
    where the input is of integers.

    All was computed in float64 from weights in float32, so that no sum is rounded on the way.
    "description" is JSON, what is returned: ``json.loads(str(np.load(path)["description"]))``.

    Args:
        model: one of this package's models in evaluation mode.
        x: a single sample, [1, C, H, W] or [1, T, C, H, W].
        path: of the file.

    Returns:
        The description: "layers" in their order with what they are and the shapes of their arrays,
        "logits", "class", the neurons' equations.

    Raises:
        ExportError: there is more than one sample; errors of :func:`export_onnx` about the model.
        FileError: the file cannot be written.
    """
    if x.ndim not in (4, 5) or len(x) != 1:
        raise ExportError(f"expected one sample, [1, C, H, W] or [1, T, C, H, W]; {list(x.shape)}")
    if not isinstance(model, SpikingNetwork):
        raise ExportError(f"expected a model of qkformer, got {type(model).__name__}")
    folded = prepare(model, tuple(x.shape[-2:])).model.double()
    x = x.cpu().double()
    layers, arrays = [], {"input": _compact(x)}
    with _recorded(folded, layers, arrays):
        logits = folded(x)
    description = {
        "model": type(model).__name__,
        "logits": logits[0].tolist(),
        "class": int(logits.argmax()),
        "neurons": EQUATIONS,
        "layers": layers,
    }
    with replacing(path) as file:
        np.savez_compressed(file, description=np.array(json.dumps(description, indent=1)), **arrays)
    return description


@contextmanager
def _recorded(
    model: nn.Module, layers: list[dict[str, Any]], arrays: dict[str, np.ndarray]
) -> Iterator[None]:
    """Fill the two with what the layers of a model get and give inside."""

    def hook(name: str, record: Callable[..., Record]) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            facts, own = record(module, inputs, output)
            kind = type(module).__name__.removeprefix("Parametrized")
            shapes = {word: list(values.shape) for word, values in own.items()}
            layers.append({"name": name, "kind": kind, **facts, "arrays": shapes})
            arrays.update({f"{name}.{word}": values for word, values in own.items()})

        return hear

    hooks = []
    for name, module in model.named_modules():
        for kinds, record in RECORDS:
            if isinstance(module, kinds):
                hooks.append(module.register_forward_hook(hook(name, record)))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _linear(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Record:
    (x,) = inputs
    arrays = {"input": _compact(x), "output": output.numpy()}
    if layer.bias is not None:
        arrays["bias"] = layer.bias.float().numpy()
    if parametrize.is_parametrized(layer):
        parts = layer.parametrizations.weight
        integers, scale = parts.original0, parts.original1
        arrays |= {"weight": integers.numpy(), "scale": scale.flatten().float().numpy()}
        if arrays["input"].dtype != np.float64:
            operation = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
            arrays["accumulator"] = operation(x, integers.double(), None).int().numpy()
    else:
        arrays["weight"] = layer.weight.float().numpy()
    facts = {}
    if isinstance(layer, nn.Conv2d):
        facts = {key: list(getattr(layer, key)) for key in ("stride", "padding")}
        facts["groups"] = layer.groups
    return facts, arrays


def _neuron(neuron: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Record:
    facts = {}
    for key in ("reciprocal_tau", "v_threshold", "v_reset", "v_init", "options"):
        value = getattr(neuron, key, None)
        facts[key] = value.item() if isinstance(value, Tensor) else value
    return facts, {"current": inputs[0].numpy(), "spikes": _compact(output)}


def _attention(product: nn.Module, inputs: tuple, output: Tensor) -> Record:
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    arrays = {word: _compact(each) for word, each in zip("qkv", tensors, strict=False)}
    if isinstance(product, SpikeMask):
        return {"num_heads": product.num_heads}, arrays | {"output": _compact(output)}
    return {"scale": product.scale}, arrays | {"output": output.numpy()}


RECORDS = (
    ((nn.Conv2d, nn.Linear), _linear),
    (FIRING, _neuron),
    ((SpikeMask, SpikeProduct), _attention),
)


def _compact(x: Tensor) -> np.ndarray:
    """In the smallest type of integers that holds the values, or as they are."""
    values = x.numpy()
    if (values != values.round()).any():
        return values
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values
