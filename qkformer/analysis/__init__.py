"""What a model costs and what it sees, from one pass over data."""

from qkformer.analysis.measure import is_neuron, measure
from qkformer.analysis.measurement import Measurement

__all__ = ["Measurement", "is_neuron", "measure"]
