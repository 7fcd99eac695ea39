"""The layers of a network as nodes of NIR; what has no counterpart there is refused by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkformer.export.subject import ExportError
from qkformer.layers import (
    ConvBNNeuron,
    PatchEmbed,
    QKAttention,
    QKTokenAttention,
    Residual,
    SpikingMLP,
)
from qkformer.layers.attention import SpikeProduct
from qkformer.models.stage import SpikingStage
from qkformer.neurons import SpikingNeuron
from qkformer.peers.resnet import ResidualBlock, SEWStem, Unchanged

DT = 1e-4  # seconds of a time step, as importers assume


@dataclass(frozen=True)
class Value:
    """What flows: the sum of what some nodes give.

    Attributes:
        nodes: their names.
        shape: of a sample at one time step, [C, H, W] or [C].
    """

    nodes: tuple[str, ...]
    shape: tuple[int, ...]

    def __add__(self, other: "Value") -> "Value":
        return Value(self.nodes + other.nodes, self.shape)


class Graph:
    """Nodes and edges while they are gathered. Several edges into a node add."""

    def __init__(self):
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: Any, x: Value, shape: tuple[int, ...] | None = None) -> Value:
        self.nodes[name] = node
        self.edges += [(source, name) for source in x.nodes]
        return Value((name,), shape or x.shape)

    def emit(self, name: str, module: nn.Module, x: Value) -> Value:
        """What ``module``, at this path, makes of ``x``."""
        for kind, emit in EMITTED.items():
            if isinstance(module, kind):
                return emit(self, name, module, x)
        kind, why = type(module).__name__, "has no counterpart in NIR"
        if any(isinstance(part, SpikeProduct) for part in module.modules()):
            why = "multiplies matrices of spikes, which NIR cannot; token_qk it can hold"
        elif isinstance(module, QKAttention):
            why = "spreads a mask over all tokens, which takes groups that nir cannot read back"
        raise ExportError(f"{name}: {kind} {why}")

    def chain(self, name: str, module: nn.Module, parts: list[str], x: Value) -> Value:
        """Parts of ``module``, one after the other; those that are None are left out."""
        for part in parts:
            if (child := getattr(module, part)) is not None:
                x = self.emit(f"{name}.{part}", child, x)
        return x


def _conv(graph: Graph, name: str, conv: nn.Conv2d, x: Value) -> Value:
    if conv.groups > 1:
        raise ExportError(f"{name}: nir cannot read a convolution with groups back, as this one is")
    bias = torch.zeros(len(conv.weight)) if conv.bias is None else conv.bias
    return _conv_of(graph, name, x, conv.weight, bias, conv.stride, conv.padding)


def _conv_of(
    graph: Graph,
    name: str,
    x: Value,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Value:
    import nir

    size = tuple(
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(x.shape[1:], weight.shape[2:], stride, padding, strict=True)
    )
    weight, bias = (each.float().numpy() for each in (weight, bias))
    node = nir.Conv2d(x.shape[1:], weight, stride, padding, (1, 1), 1, bias)
    return graph.add(name, node, x, (len(weight), *size))


def _linear(graph: Graph, name: str, linear: nn.Linear, x: Value) -> Value:
    import nir

    node = nir.Affine(linear.weight.float().numpy(), linear.bias.float().numpy())
    return graph.add(name, node, x, (linear.out_features,))


def _neuron(graph: Graph, name: str, neuron: SpikingNeuron, x: Value) -> Value:
    import nir

    options = dict(neuron.options)
    strict, charged = options.pop("strict", False), options.pop("decay_input", True)
    options.pop("detach_reset", None)  # of gradients
    if options or neuron.v_init is not None:
        raise ExportError(f"{name}: NIR has neither a soft reset nor another start ({neuron})")

    def full(value: float) -> np.ndarray:
        return np.full(x.shape, value, dtype=np.float32)

    # NIR's neurons fire above the threshold, ours at it
    threshold = np.float32(neuron.v_threshold)
    threshold = threshold if strict else np.nextafter(threshold, np.float32(-np.inf))
    constants = dict(v_threshold=full(threshold), v_reset=full(neuron.v_reset))
    if neuron.reciprocal_tau is None:
        return graph.add(name, nir.IF(r=full(1 / DT), **constants), x)
    tau = 1 / float(neuron.reciprocal_tau)
    resistance = full(1 if charged else tau)
    leak = dict(tau=full(tau * DT), r=resistance, v_leak=full(neuron.v_reset))
    return graph.add(name, nir.LIF(**leak, **constants), x)


def _threshold(graph: Graph, name: str, x: Value, value: float) -> Value:
    import nir

    return graph.add(name, nir.Threshold(np.full(x.shape, value, dtype=np.float32)), x)


def _pool(graph: Graph, name: str, x: Value) -> Value:
    """The max pool of spikes: whether any of them is there."""
    import nir

    kernel, stride, padding = (np.array([n, n]) for n in (3, 2, 1))
    size = tuple((n - 1) // 2 + 1 for n in x.shape[1:])
    sums = graph.add(f"{name}.sum", nir.SumPool2d(kernel, stride, padding), x, (x.shape[0], *size))
    return _threshold(graph, f"{name}.any", sums, 0.5)


def _conv_bn_neuron(graph: Graph, name: str, layer: ConvBNNeuron, x: Value) -> Value:
    if layer.pool == "before":
        raise ExportError(
            f"{name}: NIR has no max pool of currents, as in front of this neuron; strides, or "
            "pools behind neurons, it can hold, as qkformer_nir_4_384 has them"
        )
    x = graph.chain(name, layer, ["conv", "neuron"], x)
    if layer.pool is None:
        return x
    if layer.neuron is None:
        raise ExportError(f"{name}: NIR has no max pool of currents")
    return _pool(graph, f"{name}.pool", x)


def _qk_attention(graph: Graph, name: str, layer: QKTokenAttention, x: Value) -> Value:
    """The mask is summed and spread over its head by one convolution with ones."""
    q, k = (graph.emit(f"{name}.{part}", getattr(layer, part), x) for part in "qk")
    channels, heads = x.shape[0], layer.num_heads
    per_head = torch.ones(channels // heads, channels // heads)
    ones = torch.block_diag(*[per_head] * heads)[:, :, None, None]
    sums = _conv_of(graph, f"{name}.sums", q, ones, torch.zeros(channels))
    mask = graph.emit(f"{name}.mask_neuron", layer.mask_neuron, sums)
    masked = _threshold(graph, f"{name}.mask", mask + k, 1.5)
    return graph.emit(f"{name}.proj", layer.proj, masked)


def _residual(graph: Graph, name: str, layer: Residual, x: Value) -> Value:
    inner = graph.emit(f"{name}.neuron", layer.neuron, x) if layer.wiring == "ms" else x
    y = x + graph.emit(f"{name}.branch", layer.branch, inner)
    return graph.emit(f"{name}.neuron", layer.neuron, y) if layer.wiring == "pa" else y


def _patch_embed(graph: Graph, name: str, layer: PatchEmbed, x: Value) -> Value:
    x = graph.chain(name, layer, ["in_neuron"], x)
    branch = None
    for i, conv in enumerate(layer.convs):
        if i == layer.shortcut_after:
            branch = x
        x = graph.emit(f"{name}.convs.{i}", conv, x)
    if branch is not None:
        x = x + graph.emit(f"{name}.shortcut", layer.shortcut, branch)
    return graph.chain(name, layer, ["out_neuron", "rpe"], x)


def _residual_block(graph: Graph, name: str, layer: ResidualBlock, x: Value) -> Value:
    if layer.connection != "ADD":
        raise ExportError(f"{name}: of SEW's connections, ADD alone is written, not products")
    y = x if layer.shortcut is None else graph.emit(f"{name}.shortcut", layer.shortcut, x)
    return graph.chain(name, layer, ["neuron"], graph.chain(name, layer, ["branch"], x) + y)


def _sew_stem(graph: Graph, name: str, layer: SEWStem, x: Value) -> Value:
    return _pool(graph, f"{name}.pool", graph.chain(name, layer, ["conv", "neuron"], x))


def _sequence(graph: Graph, name: str, layer: nn.Module, x: Value) -> Value:
    for part, child in layer.named_children():
        x = graph.emit(f"{name}.{part}", child, x)
    return x


EMITTED: dict[type[nn.Module], Callable[[Graph, str, Any, Value], Value]] = {
    ConvBNNeuron: _conv_bn_neuron,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    SpikingNeuron: _neuron,
    QKTokenAttention: _qk_attention,
    Residual: _residual,
    PatchEmbed: _patch_embed,
    ResidualBlock: _residual_block,
    SEWStem: _sew_stem,
    Unchanged: lambda graph, name, layer, x: x,
    SpikingMLP: _sequence,
    SpikingStage: _sequence,
    nn.Sequential: _sequence,
}
