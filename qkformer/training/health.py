"""What goes wrong in spiking networks without an error: silent layers, gradients out of range."""

import torch
from torch import Tensor, nn

from qkformer.neurons import SpikingNeuron
from qkformer.text import some_of
from qkformer.training.distributed import World

MEASURED_BATCHES = 10  # of a test; what fires in none of them is as good as dead


class FiringRates:
    """Mean spikes per neuron and time step of every layer of neurons.

    Args:
        model: The model itself, not its DistributedDataParallel wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SpikingNeuron)
        }
        self.sums = dict.fromkeys(self.layers, 0.0)
        self.calls = dict.fromkeys(self.layers, 0)

    def measure(self, model: nn.Module, samples: Tensor) -> Tensor:
        """The model's output, its layers' spikes being counted on the way."""
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            return model.forward(samples)  # not model(samples): compiled code has no hooks
        finally:
            for handle in handles:
                handle.remove()

    def rates(self, world: World) -> dict[str, float]:
        """Layer -> firing rate over all processes, of the layers that ran."""
        sums = torch.tensor([float(self.sums[name]) for name in self.layers], dtype=torch.float64)
        calls = torch.tensor([self.calls[name] for name in self.layers], dtype=torch.float64)
        sums, calls = world.total(sums), world.total(calls)
        return {
            name: (total / count).item()
            for name, total, count in zip(self.layers, sums, calls, strict=True)
            if count
        }

    def _hook(self, name: str):
        def count(_module: nn.Module, _inputs: tuple, spikes: Tensor) -> None:
            self.sums[name] += spikes.detach().mean(dtype=torch.float32)  # stays on the device
            self.calls[name] += 1

        return count


def by_stage(rates: dict[str, float]) -> dict[str, float]:
    """Mean firing rate of the layers of every stage: stages.0, stages.1, ..., head_neuron."""
    stages: dict[str, list[float]] = {}
    for name, rate in rates.items():
        parts = name.split(".")
        stage = ".".join(parts[:2]) if parts[0] == "stages" else parts[0]
        stages.setdefault(stage, []).append(rate)
    return {stage: sum(values) / len(values) for stage, values in stages.items()}


def dead_layers(rates: dict[str, float]) -> list[str]:
    """A line for the layers that never fired, and one for those that always did."""
    kinds = {"silent (no spike)": 0.0, "saturated (spikes only)": 1.0}
    lines = []
    for kind, dead in kinds.items():
        names = [name for name, rate in rates.items() if rate == dead]
        if names:
            # where all are silent, the first one tells why
            lines.append(f"{len(names)} of {len(rates)} neuron layers {kind}: {some_of(names)}")
    return lines


def not_finite(model: nn.Module) -> list[str]:
    """Names of parameters, gradients and buffers that are not finite."""
    names = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            names.append(f"{name}.grad")
    return names
