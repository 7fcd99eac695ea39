"""Q-K token and channel attention, spike-driven and spiking self-attention; over [T, B, C, H, W].

q, k, v are binary: each is a 1x1 convolution, BatchNorm and a neuron. Source: QKFormer
(arXiv 2403.16552) and its release; SSA: Spikformer (ICLR 2023).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import fused
from qkformer.layers.conv_bn_neuron import ConvBNNeuron
from qkformer.layers.projections import project, project_to_heads, split_heads
from qkformer.neurons import LIF, SpikingNeuron
from qkformer.neurons.reference import exporting

MASK_THRESHOLD = 0.5  # of the neuron behind a sum or product of spikes (`attn_lif` in the release)


class SpikeMask(nn.Module):
    """``neuron(sum of q) * k``, as a module: without parameters, for others to see q, k and result.

    Args:
        num_heads: sum q over each head's channels; None: over the tokens.

    Shape: q, k [T, B, C, H, W] -> the same.
    """

    def __init__(self, num_heads: int | None):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, neuron: nn.Module) -> Tensor:
        if fused.masks(neuron, q, k):
            return fused.mask(neuron, q, k, heads=self.num_heads)
        mask = neuron(self.sums(q))
        if self.num_heads is None:
            return k * mask
        return (k.unflatten(2, (self.num_heads, -1)) * mask).flatten(2, 3)  # in memory as k is

    def sums(self, q: Tensor) -> Tensor:
        """What the neuron gets: [T, B, heads, 1, H, W], or [T, B, C, 1, 1]."""
        if self.num_heads is None:
            return q.sum((3, 4), keepdim=True)
        return q.unflatten(2, (self.num_heads, -1)).sum(3, keepdim=True)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class SpikeProduct(nn.Module):
    """``scale * q k^T v``, as a module: without parameters, for others to see q, k, v and result.

    Args:
        scale: None for none.

    Shape: q, k [T, B, heads, d, N], v [T, B, heads, d', N] -> [T, B, heads, d', N].
    """

    def __init__(self, scale: float | None):
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.stride(-1) == 1:  # a [d', N], b and c [d, N], as they are in memory
            return self._product(v, k, q)
        return self._product(q.mT, k.mT, v.mT).mT  # a and b [N, d], c [N, d']

    def _product(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """``scale * a b^T c``, of [m, n], [o, n], [o, p]."""
        (m, n), (o, p) = a.shape[-2:], c.shape[-2:]
        # Products of spikes are integers: either order gives the same, at 2 N d d' or N^2 (d + d'),
        # as long as the dtype holds them (float16 to 2048, bfloat16 to 256; float32 always).
        # The product inside is the smaller one, so that is where scaling costs least.
        scale = 1.0 if self.scale is None else self.scale
        if m * o * (n + p) <= n * p * (m + o):
            inside = a @ b.mT if exporting() else _Outer.apply(a, b)
            return (inside * scale) @ c
        inside = b.mT @ c if exporting() else _Inner.apply(b, c)
        return a @ (inside * scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class _Outer(torch.autograd.Function):
    """``a b^T``, whose gradients are in memory as a and b are; autograd's own is not for b."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b.mT

    @staticmethod
    def backward(ctx, grad):
        a, b = (x.to(grad.dtype) for x in ctx.saved_tensors)  # that of autocast
        return grad @ b, grad.mT @ a


class _Inner(torch.autograd.Function):
    """``b^T c``, in the same way."""

    @staticmethod
    def forward(ctx, b, c):
        ctx.save_for_backward(b, c)
        return b.mT @ c

    @staticmethod
    def backward(ctx, grad):
        b, c = (x.to(grad.dtype) for x in ctx.saved_tensors)
        return c @ grad.mT, b @ grad


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
        self.mask = SpikeMask(num_heads if self.summed_over == "channels" else None)
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``: [T, B, C, H, W], added to the output."""
        q, k = project((self.q, self.k), x)
        return self.proj(self.mask(q, k, self.mask_neuron), residual=residual)

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
            return self.proj(self.mask(k * v, q, self.mask_neuron), residual=residual)
        k, v = (_max_pool(spikes.flatten(0, 2)).view(x.shape) for spikes in (k, v))
        passed = self.mask(self._pool_heads(k * v), q, self.mask_neuron)
        return self.proj(self._pool_heads(passed), residual=residual)

    def _pool_heads(self, x: Tensor) -> Tensor:
        heads = split_heads(x, self.num_heads).flatten(0, 2)
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
            (78.80, 82.04, 84.22 %) need it; see ``docs/model.md``.

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
        self.ssa = ssa
        self.q = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.k = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.v = ConvBNNeuron(dim, dim, bias=qkv_bias, neuron=neuron())
        self.product = SpikeProduct(scale)
        self.attn_neuron = neuron(v_threshold=MASK_THRESHOLD)
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron() if out_neuron else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``: [T, B, C, H, W], added to the output."""
        qkv = project_to_heads((self.q, self.k, self.v), x, self.num_heads)
        attn = self.attn_neuron(merge_heads(self.product(*qkv), x.shape[3:]))
        if self.ssa == "original":  # T * B steps of one sample
            steps, total = attn.flatten(0, 1).unsqueeze(1), residual
            if residual is not None:
                total = residual.flatten(0, 1).unsqueeze(1)
            return self.proj(steps, residual=total).view(x.shape)
        return self.proj(attn, residual=residual)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, ssa={self.ssa}"


def merge_heads(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[T, B, heads, d, N] -> [T, B, heads d, H, W], laid out as what was split."""
    if x.is_contiguous():
        return x.flatten(2, 3).unflatten(3, size)
    return x.permute(0, 1, 4, 2, 3).flatten(3).mT.unflatten(3, size)


def check_heads(dim: int, num_heads: int) -> int:
    """``num_heads``, or ValueError if it does not divide ``dim``."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
    return num_heads
