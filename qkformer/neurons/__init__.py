"""Spiking neurons: LIF, IF, PLIF, SFA."""

from qkformer.neurons.node import IF, LIF, NEURONS, PLIF, SpikingNeuron
from qkformer.neurons.sfa import SFA

__all__ = ["IF", "LIF", "NEURONS", "PLIF", "SFA", "SpikingNeuron"]
