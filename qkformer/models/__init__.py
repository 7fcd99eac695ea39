"""Models, registered with timm under the names of :func:`list_models`."""

from qkformer.models.base import SpikingTransformer
from qkformer.models.maxformer import MaxFormer
from qkformer.models.network import SpikingNetwork
from qkformer.models.qkformer import QKFormer
from qkformer.models.registry import create_model, list_models
from qkformer.models.sdt import SpikeDrivenTransformer
from qkformer.models.spikformer import Spikformer
from qkformer.models.spikingformer import Spikingformer

__all__ = [
    "MaxFormer",
    "QKFormer",
    "Spikformer",
    "Spikingformer",
    "SpikingNetwork",
    "SpikeDrivenTransformer",
    "SpikingTransformer",
    "create_model",
    "list_models",
]
