"""Shared by all tests: the gpu marker, a seed, and models whose neurons fire."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pytest
import torch
from synthetic_state import synthetic_state
from torch import nn

import qkformer
from qkformer.models import SpikingTransformer
from qkformer.neurons import PLIF, SFA, SpikingNeuron

Model = TypeVar("Model", bound=nn.Module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_model(name: str, seed: int = 0, **options) -> SpikingTransformer:
    """A float64 model in eval mode whose neurons fire."""
    return make_fire(qkformer.create_model(name, **options).double().eval(), seed)


def make_fire(model: Model, seed: int = 0) -> Model:
    """The model, with random weights, biases and statistics.

    A fresh model hardly fires behind its first layers, so most properties would hold trivially.
    """
    state = model.state_dict()
    # synthetic_state knows a query's BatchNorm and a threshold by their published names
    published = {".q.bn.": ".q_bn.", ".theta": ".thresh"}
    shapes = {}
    for key, value in state.items():
        for ours, theirs in published.items():
            key = key.replace(ours, theirs)
        shapes[key] = value.shape
    values = synthetic_state(shapes, seed).values()
    model.load_state_dict(
        {k: torch.from_numpy(np.asarray(v)) for k, v in zip(state, values, strict=True)}
    )
    for module in model.modules():
        if isinstance(module, PLIF):
            module.w.data.clamp_(-0.5, 0.5)  # time constants near LIF's
    return model


@torch.no_grad()
def with_spikes(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and the spikes of every layer of neurons; an error if one does not fire."""
    neurons = {m: name for name, m in model.named_modules() if isinstance(m, SpikingNeuron | SFA)}
    spikes, silent = [], []

    def record(neuron: nn.Module, _inputs: tuple, fired: torch.Tensor) -> None:
        spikes.append(fired)
        if not fired.any():
            silent.append(neurons[neuron])

    hooks = [neuron.register_forward_hook(record) for neuron in neurons]
    output = model(x)
    for hook in hooks:
        hook.remove()
    assert spikes and not silent, f"these do not fire: {silent}"
    return output, spikes


@contextmanager
def firing() -> Iterator[dict[SpikingNeuron, bool]]:
    """Which layers of neurons run inside, and whether they fire."""
    fired: dict[SpikingNeuron, bool] = {}

    def record(module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        if isinstance(module, SpikingNeuron | SFA):
            fired[module] = fired.get(module, False) or bool(output.any())

    hook = nn.modules.module.register_module_forward_hook(record)
    try:
        yield fired
    finally:
        hook.remove()
