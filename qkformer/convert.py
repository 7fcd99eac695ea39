"""From trained networks to spiking ones: ``convert(model, method=...)``."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import Tensor, nn

from qkformer.models.network import SpikingNetwork
from qkformer.neurons import SFA
from qkformer.peers.qcfs import QCFS, Firing


def convert(model: nn.Module, *, T: int | None = None, method: str, **options: Any) -> nn.Module:
    """A copy of the model, in eval mode, whose activations are spikes over time.

    Args:
        model: stays as it is.
        T: time steps; None for as many as the method has by itself.
        method: "sfa" unrolls the integers of E-SpikeFormer into binary steps, exactly; T is the
            number of levels. "qcfs" puts integrate-and-fire neurons in the place of QCFS
            activations (QCFS networks, Masked Spiking Transformer), whose outputs theirs approach
            as T grows. "ann2snn" does so for the ReLUs of any network that ``torch.fx`` can trace,
            a VGG-16 of timm's, say; it is SpikingJelly's rate coding, and RMP-like (Han et al.,
            CVPR 2020, of which no code was published): IF neurons, reset by subtraction, with
            thresholds balanced layer by layer.
        options: of "ann2snn": ``calibration``, batches of images or of (images, labels), and
            ``mode``, "Max" for thresholds at the layers' largest inputs over them, a percentile
            such as "99.9%", or a factor in (0, 1].

    Raises:
        ValueError: no such method; nothing in the model that it could convert; T does not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    return METHODS[method](copy.deepcopy(model).eval(), T, **options)


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


def _rate_code(
    model: nn.Module, T: int | None, *, calibration: Iterable, mode: str | float = "Max"
) -> nn.Module:
    if T is None or T < 1 or not any(isinstance(m, nn.ReLU) for m in model.modules()):
        raise ValueError(f"method='ann2snn' expects T >= 1 and ReLUs, got T={T}")
    recipe = ann2snn.RateCodingRecipe(calibration, mode=mode)
    return RateCoded(ann2snn.FXConverter(recipe).convert(model), T)


class RateCoded(nn.Module):
    """A single-step network of SpikingJelly's neurons, run T times on an image.

    Shape: images [B, C, H, W] -> logits [B, num_classes], averaged; ``per_step``: [T, B, ...].
    """

    def __init__(self, network: nn.Module, T: int):
        super().__init__()
        self.network, self.T = network, T

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        functional.reset_net(self.network)
        logits = torch.stack([self.network(x) for _ in range(self.T)])
        functional.reset_net(self.network)
        return logits if per_step else logits.mean(0)


METHODS = {"sfa": _unroll, "qcfs": _fire, "ann2snn": _rate_code}
