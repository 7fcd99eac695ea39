"""From trained networks to spiking ones: ``convert(model, method=...)``."""

import copy

from torch import nn

from qkformer.models.network import SpikingNetwork
from qkformer.neurons import SFA
from qkformer.peers.qcfs import QCFS, Firing


def convert(model: nn.Module, *, T: int | None = None, method: str) -> nn.Module:
    """A copy of the model, in eval mode, whose activations are spikes over time.

    Args:
        model: stays as it is.
        T: time steps; None for as many as the method has by itself.
        method: "sfa" unrolls the integers of E-SpikeFormer into binary steps, exactly; T is the
            number of levels. "qcfs" puts integrate-and-fire neurons in the place of QCFS
            activations (QCFS networks, Masked Spiking Transformer), whose outputs theirs approach
            as T grows.

    Raises:
        ValueError: no such method; nothing in the model that it could convert; T does not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    return METHODS[method](copy.deepcopy(model).eval(), T)


def _unroll(model: SpikingNetwork, T: int | None) -> SpikingNetwork:
    neurons = [module for module in model.modules() if isinstance(module, SFA)]
    levels = {neuron.levels for neuron in neurons}
    if len(levels) != 1 or T not in (None, *levels):
        raise ValueError(f"method='sfa' has as many steps as levels, {sorted(levels)}; T={T}")
    for neuron in neurons:
        neuron.unrolled = True
    (model.T,) = levels
    return model


def _fire(model: SpikingNetwork, T: int | None) -> SpikingNetwork:
    activations = [name for name, m in model.named_modules() if isinstance(m, QCFS)]
    if not activations or T is None or T < 1:
        raise ValueError(f"method='qcfs' expects T >= 1 and QCFS activations, got T={T}")
    for name in activations:
        model.set_submodule(name, Firing(model.get_submodule(name)))
    model.T = T
    return model


METHODS = {"sfa": _unroll, "qcfs": _fire}
