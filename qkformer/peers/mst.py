"""Masked Spiking Transformer (ICCV 2023): a Swin transformer to be converted to spikes.

An activation stands behind every linear map; BatchNorm over the tokens takes LayerNorm's place, but
for the last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, nn

from qkformer.layers import ConvBNNeuron
from qkformer.layers.attention import check_heads
from qkformer.models.network import SpikingNetwork, check_integers, check_rates
from qkformer.models.registry import image_cfg, register_variants
from qkformer.models.stage import SpikingStage
from qkformer.peers.meta_layers import EachStep
from qkformer.peers.qcfs import QCFS

Activation = Callable[[], nn.Module]


def linear(in_chans: int, out_chans: int, bias: bool = True) -> nn.Module:
    return EachStep(nn.Conv2d(in_chans, out_chans, 1, bias=bias))


def batch_norm(dim: int) -> nn.Module:
    return EachStep(nn.BatchNorm2d(dim))


class RandomMask(nn.Module):
    """Sets each element to 0 with probability p, in training and in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.p) if self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


class WindowAttention(nn.Module):
    """softmax(act(q k^T / sqrt(d)) + bias) v within windows, over [T, B, C, H, W].

    Args:
        dim, num_heads: channels and heads.
        window: height and width of the windows.
        shift: by which they are moved, if there is more than one.
        act: makes an activation.
        masking: share of what the activations of q, k and their product give that is set to 0.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, shift: int, act: Activation, masking: float
    ):
        super().__init__()
        self.num_heads, self.window, self.shift = check_heads(dim, num_heads), window, shift
        self.qkv = linear(dim, 3 * dim)
        self.mask = RandomMask(masking)
        self.q_act, self.k_act, self.attn_act, self.v_act, self.out_act = (act() for _ in range(5))
        self.proj = linear(dim, dim)
        self.proj_act = act()
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        index = get_relative_position_index(window, window)
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3:]
        shift = 0 if min(H, W) <= self.window else self.shift
        y = self.qkv(x)
        if shift:
            y = y.roll((-shift, -shift), (3, 4))
        q, k, v = (self._windows(part) for part in y.chunk(3, 2))  # [T, B, windows, h, M, d]
        q, k = self.mask(self.q_act(q)), self.mask(self.k_act(k))
        attn = self.mask(self.attn_act(q @ k.mT / q.shape[-1] ** 0.5))
        attn = attn + self.bias_table[self.bias_index].permute(2, 0, 1)
        if shift:
            attn = attn + self._shift_mask(x, shift)
        y = self.out_act(attn.softmax(-1) @ self.v_act(v))
        y = self._merged(y, H, W)
        if shift:
            y = y.roll((shift, shift), (3, 4))
        return self.proj_act(self.proj(y))

    def _windows(self, x: Tensor) -> Tensor:
        """[T, B, C, H, W] -> [T, B, windows, heads, tokens of a window, C / heads]"""
        M = self.window
        x = x.unflatten(4, (-1, M)).unflatten(3, (-1, M)).unflatten(2, (self.num_heads, -1))
        return x.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(2, 3)

    def _merged(self, x: Tensor, H: int, W: int) -> Tensor:
        """The inverse of :meth:`_windows`."""
        M = self.window
        x = x.unflatten(4, (M, M)).unflatten(2, (H // M, W // M))
        return x.permute(0, 1, 4, 7, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _shift_mask(self, x: Tensor, shift: int) -> Tensor:
        """-100 between tokens that the shift has made neighbours, [windows, 1, M, M]."""
        H, W = x.shape[3:]
        region = torch.zeros(1, 1, self.num_heads, H, W, dtype=x.dtype, device=x.device)
        for start in (-self.window, -shift):
            region[..., start:, :] += 1
            region[..., start:] += 3
        regions = self._windows(region)[0, 0, :, :1, :, 0]
        return -100.0 * (regions[..., None, :] != regions[..., None]).to(x.dtype)


class MSTBlock(nn.Module):
    """Window attention, then an MLP whose shortcut carries the normalised input."""

    def __init__(
        self, dim: int, num_heads: int, window: int, shift: int, act: Activation, masking: float
    ):
        super().__init__()
        self.norm1, self.act1 = batch_norm(dim), act()
        self.attn = WindowAttention(dim, num_heads, window, shift, act, masking)
        self.norm2, self.act2 = batch_norm(dim), act()
        self.fc1 = ConvBNNeuron(dim, 4 * dim, bias=True, neuron=act())
        self.fc2 = ConvBNNeuron(4 * dim, dim, bias=True, neuron=act())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.act1(self.norm1(x)))
        x = self.norm2(x)
        return x + self.fc2(self.fc1(self.act2(x)))


class PatchEmbedding(nn.Module):
    """conv 4x4 of stride 4, BatchNorm, activation."""

    def __init__(self, in_chans: int, dim: int, act: Activation):
        super().__init__()
        self.proj = EachStep(nn.Conv2d(in_chans, dim, 4, 4))
        self.norm, self.act = batch_norm(dim), act()

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        return self.act(x.expand(time_steps or len(x), *x.shape[1:]))


class PatchMerging(nn.Module):
    """Four neighbours' channels, BatchNorm, linear map to half of them, activation."""

    def __init__(self, dim: int, act: Activation):
        super().__init__()
        self.norm = batch_norm(4 * dim)
        self.reduction, self.act = linear(4 * dim, 2 * dim, bias=False), act()

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.act(self.reduction(self.norm(torch.cat(corners, 2))))


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm of the channels of [T, B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        # Not F.layer_norm of the channels moved last: the gradient would come back in a layout that
        # PyTorch 2.14's BatchNorm misreads where T * B is 1.
        variance, mean = torch.var_mean(x, 2, correction=0, keepdim=True)
        y = (x - mean) / (variance + self.eps).sqrt()
        return y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class MaskedSpikingTransformer(SpikingNetwork):
    """Swin transformer with QCFS activations; ``qkformer.convert`` makes it spike.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: of each stage.
        window: height and width of the attention's windows; the last stage's height and width have
            to be a multiple of it.
        levels: L of the activations.
        masking: share of the spikes of q, k and their product that are masked at random, with which
            the authors trade accuracy for energy: 0 or 0.75. As published also in evaluation, which
            is random then.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int = 7,
        levels: int = 16,
        masking: float = 0.0,
        in_chans: int = 3,
        T: int = 1,
        **kwargs: Any,
    ):
        check_rates(masking=masking)
        check_integers(in_chans=(in_chans, 1), embed_dim=(embed_dim, 1), window=(window, 1))
        act = partial(QCFS, levels, start=2.0, clamp_first=False)
        stages = []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**i
            embed = PatchMerging(dim // 2, act) if i else PatchEmbedding(in_chans, dim, act)
            shifts = (window // 2 if j % 2 else 0 for j in range(depth))
            blocks = [MSTBlock(dim, heads, window, shift, act, masking) for shift in shifts]
            if i == len(depths) - 1:
                blocks.append(ChannelLayerNorm(dim))
            stages.append(SpikingStage(embed, blocks, dim, 2 if i else 4))
        super().__init__(stages, in_chans=in_chans, T=T, **kwargs)
        self.downsampling *= window


register_variants(
    MaskedSpikingTransformer,
    {
        "mst_swin_t": (
            image_cfg(crop_pct=0.9, first_conv="stages.0.embed.proj.layer"),
            dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        )
    },
)
