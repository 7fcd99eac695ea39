"""Spiking neurons: LIF, IF, PLIF."""

from qkformer.neurons.node import IF, LIF, NEURONS, PLIF, SpikingNeuron

__all__ = ["IF", "LIF", "NEURONS", "PLIF", "SpikingNeuron"]
