"""The ANN row of the paper's tables: a transformer of Spikformer's layers.

From Spikformer's paper (arXiv 2209.15425). Its code was never published: that it has Spikformer's
layers follows from its 9.32 M parameters alone. Every neuron is a ReLU here, and the attention's q,
k and v have none: which activations were taken, and where, is not known.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import MIXERS, ConvBNNeuron
from qkformer.layers.attention import check_heads
from qkformer.models.registry import cifar_cfg, register_variants
from qkformer.models.spikformer import CIFAR, Spikformer
from qkformer.peers.resnet import relu


class SoftmaxAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v per head, then a projection; [T, B, C, H, W] -> the same.

    Arguments as for :class:`~qkformer.layers.QKAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, *, neuron: Any = relu, out_neuron: bool = True
    ):
        super().__init__()
        self.num_heads = check_heads(dim, num_heads)
        self.q, self.k, self.v = (ConvBNNeuron(dim, dim, bias=True) for _ in "qkv")
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).flatten(3).unflatten(2, (self.num_heads, -1)).mT
            for layer in (self.q, self.k, self.v)
        )  # [T, B, heads, N, C / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.mT.flatten(2, 3).unflatten(3, x.shape[3:]))


class Transformer(Spikformer):
    """Spikformer with softmax attention, and ReLU for its neurons; T is 1.

    Arguments: those of :class:`~qkformer.models.spikformer.Spikformer`.
    """


MIXERS["softmax"] = SoftmaxAttention
register_variants(
    Transformer,
    {"transformer_4_384": (cifar_cfg(), dict(CIFAR, mixer="softmax", neuron=relu, T=1))},
)
