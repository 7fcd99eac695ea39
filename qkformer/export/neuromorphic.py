"""NIR, the exchange format of neuromorphic hardware and simulators (https://neuroir.org)."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkformer.export.nir_layers import DT, Graph, Value
from qkformer.export.subject import Exported, ExportError, Subject, compare, need, prepare
from qkformer.files import replacing
from qkformer.models import SpikingNetwork


def _whole(network: SpikingNetwork, size: tuple[int, ...]) -> Any:
    """The NIR graph of a network, up to the logits of a time step."""
    import nir

    if type(network).forward_head is not SpikingNetwork.forward_head or not network.num_classes:
        raise ExportError(f"{type(network).__name__}: NIR needs a network with one linear head")
    graph = Graph()
    graph.nodes["input"] = nir.Input({"input": np.array(size)})
    x = Value(("input",), size)
    for i, stage in enumerate(network.stages):
        x = graph.emit(f"stages.{i}", stage, x)
    window = np.array(x.shape[1:])
    x = graph.add("mean", nir.AvgPool2d(window, window, np.array([0, 0])), x, (x.shape[0], 1, 1))
    flat = nir.Flatten({"input": np.array(x.shape)}, start_dim=0, end_dim=-1)
    x = graph.add("flat", flat, x, x.shape[:1])
    if network.head_neuron is not None:
        x = graph.emit("head_neuron", network.head_neuron, x)
    x = graph.emit("head", network.head, x)
    graph.add("output", nir.Output({"output": np.array(x.shape)}), x)
    renamed = {name: name.replace(".", "_") for name in graph.nodes}
    return nir.NIRGraph(
        {renamed[name]: node for name, node in graph.nodes.items()},
        [(renamed[source], renamed[target]) for source, target in graph.edges],
    )


@torch.no_grad()
def export_nir(
    model: SpikingNetwork,
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    frames: int | None = None,
    check: bool = True,
) -> Exported:
    """Write a NIR file (HDF5), with BatchNorm folded, if NIR can hold the model exactly.

    The graph is of one time step, with an image or event frame [C, H, W] as its input, and logits
    as its output: the model's are their mean over time steps. Time steps are of 0.1 ms. Sums of
    residual branches are two edges into one node. Q-K attention's mask is a convolution with ones,
    a neuron and a threshold (AND); max pools of spikes are sums and a threshold (OR).

    Args:
        model, path, image_size, frames: as for :func:`export_onnx`; ``frames`` of the check.
        check: import the graph by SpikingJelly's nodes and nirtorch, and compare.

    Raises:
        ExportError: a layer has no counterpart (spiking self-attention, max pools of currents),
            which is named; or as :func:`export_onnx`.
        FileError: the file cannot be written.
    """
    need("nir", *(("nirtorch",) if check else ()))
    import nir

    if not isinstance(model, SpikingNetwork):
        raise ExportError(f"expected a model of qkformer, got {type(model).__name__}")
    subject = prepare(model, image_size, frames)
    graph = _whole(subject.model, subject.shape[-3:])
    agreement = None
    if check:
        agreement = compare(subject, "SpikingJelly's nodes in nirtorch", _runner(graph, subject))
    content = io.BytesIO()
    nir.write(content, graph)
    with replacing(path) as file:
        file.write(content.getbuffer())
    return Exported(Path(path), f"NIR {nir.version}", len(graph.nodes), agreement)


def _runner(graph: Any, subject: Subject) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The graph as others read it: inputs of the model to the mean of the logits."""
    import nir
    import nirtorch
    from spikingjelly.activation_based.nir_exchange.from_nir import _NodeMapper

    # what import_from_nir knows, and the two nodes that it does not
    nodes = _NodeMapper(DT).map_dict | {nir.SumPool2d: _SumPool, nir.Threshold: _Threshold}
    network = nirtorch.nir_to_torch(graph, nodes)

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        steps = x.unbind(1) if x.ndim == 5 else [x] * subject.model.T
        total, state = 0, None
        for step in steps:
            logits, state = network(step, state)
            total = total + logits
        return (total / len(steps),)

    return run


class _SumPool(nn.Module):
    def __init__(self, node: Any):
        super().__init__()
        window = (node.kernel_size, node.stride, node.padding)
        self.pool = nn.AvgPool2d(*(tuple(map(int, each)) for each in window))
        self.elements = float(np.prod(node.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) * self.elements


class _Threshold(nn.Module):
    def __init__(self, node: Any):
        super().__init__()
        self.register_buffer("threshold", torch.from_numpy(node.threshold))

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)
