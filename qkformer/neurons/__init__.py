"""Spiking neurons: LIF, IF, PLIF, SFA."""

from qkformer.neurons.node import IF, LIF, NEURONS, PLIF, SpikingNeuron
from qkformer.neurons.sfa import SFA

FIRING = (SpikingNeuron, SFA)  # modules whose outputs are spikes, or integers that stand for them

__all__ = ["FIRING", "IF", "LIF", "NEURONS", "PLIF", "SFA", "SpikingNeuron"]
