"""The two 1x1 convolutions behind each token mixer."""

from collections.abc import Callable

from torch import Tensor, nn

from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.neurons import LIF, SpikingNeuron


class SpikingMLP(nn.Module):
    """conv 1x1 -> BatchNorm -> neuron -> conv 1x1 -> BatchNorm (-> neuron).

    Args:
        dim, hidden_dim: channels outside and inside.
        neuron: makes a neuron.
        out_neuron: end in a neuron (spikes), or in BatchNorm (membrane current).

    Shape: spikes [T, B, C, H, W] -> the same.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        neuron: Callable[..., SpikingNeuron] = LIF,
        out_neuron: bool = True,
    ):
        super().__init__()
        self.fc1 = ConvBNNeuron(dim, hidden_dim, bias=True, neuron=neuron())
        self.fc2 = ConvBNNeuron(hidden_dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``: [T, B, C, H, W], added to the output."""
        return self.fc2(self.fc1(x), residual=residual)
