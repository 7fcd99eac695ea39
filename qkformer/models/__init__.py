"""Models, registered with timm under the names of :func:`list_models`."""

from qkformer.models.base import SpikingTransformer
from qkformer.models.maxformer import MaxFormer
from qkformer.models.qkformer import QKFormer
from qkformer.models.registry import create_model, list_models
from qkformer.models.spikformer import Spikformer

__all__ = [
    "MaxFormer",
    "QKFormer",
    "Spikformer",
    "SpikingTransformer",
    "create_model",
    "list_models",
]
