"""Systems that QKFormer is compared with and that share little of its structure."""

from qkformer.peers.metaspikformer import ESpikeFormer, LargeESpikeFormer, MetaSpikeFormer
from qkformer.peers.mst import MaskedSpikingTransformer
from qkformer.peers.resnet import CIFARResNet, SEWResNet
from qkformer.peers.stsa import STSAFormer
from qkformer.peers.transformer import Transformer

__all__ = [
    "CIFARResNet",
    "ESpikeFormer",
    "LargeESpikeFormer",
    "MaskedSpikingTransformer",
    "MetaSpikeFormer",
    "SEWResNet",
    "STSAFormer",
    "Transformer",
]
