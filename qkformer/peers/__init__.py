"""Systems that QKFormer is compared with and that share little of its structure."""

from qkformer.peers.metaspikformer import ESpikeFormer, LargeESpikeFormer, MetaSpikeFormer

__all__ = ["ESpikeFormer", "LargeESpikeFormer", "MetaSpikeFormer"]
