"""Systems that QKFormer is compared with and that share little of its structure."""

from qkformer.peers.metaspikformer import ESpikeFormer, LargeESpikeFormer, MetaSpikeFormer
from qkformer.peers.resnet import ResNet19, SEWResNet

__all__ = ["ESpikeFormer", "LargeESpikeFormer", "MetaSpikeFormer", "ResNet19", "SEWResNet"]
