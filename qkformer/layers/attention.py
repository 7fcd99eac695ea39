"""Q-K token and channel attention, spike-driven and spiking self-attention; over [T, B, C, H, W].

q, k, v are binary: each is a 1x1 convolution, BatchNorm and a neuron. Source: QKFormer
(arXiv 2403.16552) and its release; SSA: Spikformer (ICLR 2023).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import fused
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.layers.projections import project
from qkformer.neurons import LIF, SpikingNeuron

MASK_THRESHOLD = 0.5  # of the neuron behind a sum or product of spikes (`attn_lif` in the release)


class QKAttention(nn.Module):
    """mask * k, where the mask is a neuron fed with sums of q; then a projection.

    Args:
        dim: channels C.
        num_heads: C is split into this many heads.
        neuron: makes a neuron; called with ``v_threshold`` for the mask's.
        out_neuron: end in a neuron (spikes), or in BatchNorm (membrane current).

    Shape: spikes [T, B, C, H, W] -> the same.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    summed_over: Literal["channels", "tokens"]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        neuron: Callable[..., SpikingNeuron] = LIF,
        out_neuron: bool = True,
    ):
        super().__init__()
        self.num_heads = check_heads(dim, num_heads)
        self.q = ConvBNNeuron(dim, dim, neuron=neuron())
        self.k = ConvBNNeuron(dim, dim, neuron=neuron())
        self.mask_neuron = neuron(v_threshold=MASK_THRESHOLD)
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``: [T, B, C, H, W], added to the output."""
        return self.proj(self._masked(*project((self.q, self.k), x)), residual=residual)

    def _masked(self, q: Tensor, k: Tensor) -> Tensor:
        """mask * k of q, k [T, B, C, H, W]"""
        channels = self.summed_over == "channels"
        if fused.masks(self.mask_neuron, q, k):
            return fused.mask(self.mask_neuron, q, k, heads=self.num_heads if channels else None)
        q = q.unflatten(2, (self.num_heads, -1))
        k = k.unflatten(2, (self.num_heads, -1))
        mask = self.mask_neuron(q.sum(3 if channels else (4, 5), keepdim=True))
        return (mask * k).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class QKTokenAttention(QKAttention):
    """QKTA: q, summed over each head's channels, decides which tokens of k pass.

    Arguments, shapes and errors: :class:`QKAttention`. O(N) memory, O(C) time for the mask.
    """

    summed_over = "channels"  # of each head


class QKChannelAttention(QKAttention):
    """QKCA: q, summed over the tokens, decides which channels of k pass.

    Arguments, shapes and errors: :class:`QKAttention`. O(C) memory, O(N) time for the mask.
    """

    summed_over = "tokens"


class SpikeDrivenAttention(QKChannelAttention):
    """SDSA: k * v, summed over the tokens, decides which channels of q pass.

    Spike-driven Transformer (arXiv 2307.01694), with its names of the three. Arguments, shapes and
    errors: :class:`QKAttention`; without ``pooled``, ``num_heads`` makes no difference.

    Args:
        pooled: max pools of kernel 3 and stride 1 over the spikes of k and v, over k * v and over
            what passes, as published for CIFAR10-DVS. The last two run over [N, C / heads], token
            order times channel, as if that were an image, which is hardly meant.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, pooled: bool = False, **kwargs):
        super().__init__(dim, num_heads, **kwargs)
        self.v = ConvBNNeuron(dim, dim, neuron=kwargs.get("neuron", LIF)())
        self.pooled = pooled

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        q, k, v = project((self.q, self.k, self.v), x)
        if not self.pooled:
            return self.proj(self._masked(k * v, q), residual=residual)
        k, v = (_max_pool(spikes.flatten(0, 2)).view(x.shape) for spikes in (k, v))
        passed = self._masked(self._pool_heads(k * v), q)
        return self.proj(self._pool_heads(passed), residual=residual)

    def _pool_heads(self, x: Tensor) -> Tensor:
        heads = x.flatten(3).unflatten(2, (self.num_heads, -1)).flatten(0, 2)
        return _max_pool(heads.mT).mT.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pooled={self.pooled}"


def _max_pool(x: Tensor) -> Tensor:
    """Of kernel 3 and stride 1, over the last two of [..., H, W]."""
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class SpikingSelfAttention(nn.Module):
    """SSA: neuron(scale * q k^T v) per head, then a projection. No softmax.

    Args:
        dim, num_heads, neuron, out_neuron: as for QKTokenAttention.
        scale: factor on the product; None for none.
        qkv_bias: biases in the convolutions of q, k, v.
        ssa: "fixed", or "original" for the attention as QKFormer first released it. There the last
            neuron was given [T * B, C, N] and ran through T * B steps, so that its membrane
            potential passes from sample to sample and an output depends on the rest of the batch.
            QKFormer's released weights were trained so, and the published ImageNet accuracies
            (78.80, 82.04, 84.22 %) need it; see the README.

    Shape: spikes [T, B, C, H, W] -> the same.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``ssa`` is neither of the two, or
            "original" without the last neuron.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        scale: float | None = 0.125,
        qkv_bias: bool = False,
        ssa: Literal["fixed", "original"] = "fixed",
        neuron: Callable[..., SpikingNeuron] = LIF,
        out_neuron: bool = True,
    ):
        super().__init__()
        if ssa not in ("fixed", "original"):
            raise ValueError(f"ssa must be 'fixed' or 'original', got {ssa!r}")
        if ssa == "original" and not out_neuron:
            raise ValueError("ssa='original' is a fault of the last neuron; there is none here")
        self.num_heads = check_heads(dim, num_heads)
        self.scale = scale
        self.ssa = ssa
        self.q = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.k = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.v = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.attn_neuron = neuron(v_threshold=MASK_THRESHOLD)
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``: [T, B, C, H, W], added to the output."""
        qkv = project((self.q, self.k, self.v), x)
        scale = 1.0 if self.scale is None else self.scale
        attn = self.attn_neuron(product(*qkv, num_heads=self.num_heads, scale=scale))
        if self.ssa == "original":  # T * B steps of one sample
            steps, total = attn.flatten(0, 1).unsqueeze(1), residual
            if residual is not None:
                total = residual.flatten(0, 1).unsqueeze(1)
            return self.proj(steps, residual=total).view(x.shape)
        return self.proj(attn, residual=residual)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale}, ssa={self.ssa}"


def product(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float) -> Tensor:
    """scale * q k^T v per head; q, k [T, B, C, H, W], v [T, B, C', H, W] -> [T, B, C', H, W]."""
    space = q.shape[3:]
    q, k, v = (x.flatten(3).unflatten(2, (num_heads, -1)) for x in (q, k, v))  # [T,B,h,d,N]
    d, n = q.shape[-2:]
    # Products of spikes are integers: either order gives the same, at N d^2 or at N^2 d,
    # as long as the dtype holds them (float16 to 2048, bfloat16 to 256; float32 always).
    # The product inside is the smaller one, so that is where scaling costs least.
    y = (v @ k.mT * scale) @ q if d <= n else v @ (k.mT @ q * scale)
    return y.flatten(2, 3).unflatten(3, space)


def check_heads(dim: int, num_heads: int) -> int:
    """``num_heads``, or ValueError if it does not divide ``dim``."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
    return num_heads
