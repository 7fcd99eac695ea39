"""One pass of a model over data, which counts everything that energy and rates are made of."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from spikingjelly.activation_based.neuron import BaseNode, SimpleBaseNode
from torch import Tensor, nn

from qkformer.analysis.attention import ProductAttention
from qkformer.analysis.census import Census
from qkformer.analysis.measurement import SILENT, UNLISTED, Measurement
from qkformer.analysis.records import Neuron
from qkformer.analysis.tallies import (
    CONVOLUTIONS,
    LayerTally,
    MaskTally,
    NeuronTally,
    ProductTally,
)
from qkformer.analysis.tally import Frame, Tally, largest, merge
from qkformer.analysis.watch import as_it_was, counted, forget, hooked
from qkformer.checkpoint.released import NoPublishedNames, released_names
from qkformer.data.source import DataError
from qkformer.layers.attention import SpikeMask, SpikeProduct
from qkformer.models import SpikingNetwork
from qkformer.neurons import SpikingNeuron
from qkformer.peers.qcfs import Firing


class World(Protocol):
    """Several processes, as qkformer.training.distributed.World."""

    def total(self, values: Tensor) -> Tensor:
        """Sum of all processes' tensors, on the CPU."""


def is_neuron(module: nn.Module) -> bool:
    """Ours and SpikingJelly's; others say by ``spike_height`` what one spike of theirs is."""
    known = isinstance(module, SpikingNeuron | BaseNode | SimpleBaseNode)
    return known or hasattr(module, "spike_height")


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    T: int | None = None,
    batch_axis: int = 0,
    world: World | None = None,
) -> Measurement:
    """Run the model over the batches and count.

    Everything is found by type: convolutions and linear layers, neurons (:func:`is_neuron`), and
    attentions by their :class:`~qkformer.layers.attention.SpikeProduct` or
    :class:`~qkformer.layers.attention.SpikeMask`. The model is left as it was.

    Args:
        model: any module that takes a batch.
        batches: tensors, or tuples whose first part is one; [B, C, H, W] or [B, T, C, H, W] unless
            ``batch_axis`` says otherwise. The last may be short.
        T: time steps; without it those of the batch if it has 5 axes, else ``model.T``, else 1.
        batch_axis: 1 for models that take [T, B, ...].
        world: processes that share the batches; sums are over all of them, in each.

    Raises:
        DataError: no batch, batches of different sizes, a shape in which time cannot be told.
    """
    learned = [module.theta for module in model.modules() if isinstance(module, Firing)]
    frame = Frame(_spike_height(model), learned)
    tallies = [
        kind(name, module, frame)
        for name, module in model.named_modules()
        if (kind := _kind(module)) is not None
    ]
    census = Census()
    shape, samples, executed, device = (), 0, 0, _device(model)
    with as_it_was(model), ExitStack() as hooks, torch.no_grad():
        for tally in tallies:
            hooks.enter_context(hooked(tally, census))
        for batch in batches:
            x = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
            B = x.shape[batch_axis]
            steps = T or (x.shape[1 - batch_axis] if x.ndim == 5 else getattr(model, "T", 1))
            forget(model, tallies)
            frame.start(steps, B)
            if samples == 0:
                shape = tuple(x.select(batch_axis, 0).shape)
                executed = counted(model, x, census) // (2 * B)
                census.divide(B)
            else:
                model(x)
            samples += B
    total = Tensor.clone if world is None else world.total
    facts = [samples > 0, frame.T, executed, *census.elements.values(), *shape]
    facts = largest(torch.tensor([*facts, *[0] * 16][:16], dtype=torch.int64), total).tolist()
    samples = int(total(torch.tensor(samples)))
    if samples == 0:
        raise DataError("nothing to measure: there is no batch in the data")
    merge(tallies, total)
    tallies = sorted((t for t in tallies if t.facts["order"]), key=lambda t: t.facts["order"])
    _, steps, executed, *facts = facts
    others = dict(zip(census.elements, facts, strict=False))
    shape = tuple(size for size in facts[len(others) :] if size)
    return _measurement(model, tallies, steps, samples, shape, executed, others)


def _measurement(
    model: nn.Module,
    tallies: list[Tally],
    T: int,
    samples: int,
    shape: tuple[int, ...],
    executed: int,
    others: dict[str, int],
) -> Measurement:
    heads = _heads(model, tallies)
    published = _published(model)
    layers, attention, neurons, listed = [], [], [], 0
    for tally in tallies:
        if isinstance(tally, LayerTally):
            key = published.get(tally.name)
            layers.append(tally.record(T, samples, head=tally.module in heads, published=key))
            listed += layers[-1].macs * tally.facts["steps"]
        elif isinstance(tally, NeuronTally):
            neurons.append(tally.record(samples))
        else:
            name = tally.name.rpartition(".")[0]
            kind = type(model.get_submodule(name) if name else model).__name__
            attention.append(tally.record(name, kind, samples))
            if isinstance(attention[-1], ProductAttention):
                listed += attention[-1].executed_macs_of_all_steps
    others = {
        "neuron updates": sum(neuron.numel for neuron in neurons) // samples,
        **others,
        UNLISTED: executed - listed,
    }
    return Measurement(
        model=getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__),
        T=T,
        samples=samples,
        input_shape=shape,
        layers=tuple(layers),
        attention=tuple(attention),
        neurons=tuple(neurons),
        executed_macs=executed,
        left_out={name: count for name, count in others.items() if count},
        remarks=tuple(_remarks(model, neurons)),
    )


def _remarks(model: nn.Module, neurons: list[Neuron]) -> Iterator[str]:
    if not neurons:
        yield "an ANN, without neurons: its energy is that of 4.6 pJ for each of its MACs"
    silent = [neuron for neuron in neurons if neuron.rate < SILENT]
    if 2 * len(silent) > len(neurons):
        yield (
            f"{len(silent)} of {len(neurons)} layers of neurons hardly fire (less than {SILENT} "
            "spikes a step), as before training: these energies are no estimate"
        )
    for name in ("ssa", "stsa"):
        if any(getattr(module, name, None) == "original" for module in model.modules()):
            yield f"{name} original: rates and energy depend on which samples share a batch"


def _spike_height(model: nn.Module) -> float:
    """The unit in which inputs are counted: the smallest that a neuron of the model declares."""
    declared = [float(m.spike_height) for m in model.modules() if hasattr(m, "spike_height")]
    return min(declared, default=1.0)


def _kind(module: nn.Module) -> type[Tally] | None:
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return LayerTally
    if isinstance(module, SpikeProduct):
        return ProductTally
    if isinstance(module, SpikeMask):
        return MaskTally
    return NeuronTally if is_neuron(module) else None


def _heads(model: nn.Module, tallies: list[Tally]) -> list[nn.Module]:
    """The classifiers: what timm's models call so, else a linear layer that runs last."""
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
        return list(found) if isinstance(found, tuple) else [found]
    layers = [tally.module for tally in tallies if isinstance(tally, LayerTally)]
    return [module for module in layers[-1:] if isinstance(module, nn.Linear)]


def _published(model: nn.Module) -> dict[str, str]:
    """Published key of every layer, where the model has published weights."""
    if not isinstance(model, SpikingNetwork):
        return {}
    try:
        names = released_names(model)
    except NoPublishedNames:
        return {}
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, (theirs, _) in names.items()
    }


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
