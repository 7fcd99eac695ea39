"""STSA: spatial-temporal self-attention for event streams (IJCAI 2023)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from qkformer.layers import Conv3x3, ConvBNNeuron, EmbedSpec, PatchEmbed, Residual, SpikingMLP
from qkformer.layers.attention import check_heads
from qkformer.models.network import SpikingNetwork, check_integers, check_rates, neuron_maker
from qkformer.models.registry import dvs_cfg, register_variants
from qkformer.models.stage import SpikingStage
from qkformer.neurons import SpikingNeuron
from qkformer.peers.resnet import TDBN_NEURON


class SpatialTemporalAttention(nn.Module):
    """Tokens of all time steps attend to those that are not later.

    ``neuron(((q k^T + R) * M) v / 8)``, then a projection: R a learned bias by relative (t, y, x),
    M = 1 where the key's time step is not later than the query's, else 0.

    Args:
        dim, num_heads: channels and heads.
        T, grid: time steps, and height and width of the tokens; R binds the layer to them.
        neuron: makes a neuron.
        stsa: "fixed", or "original" for the attention as released, which lays [T, B, C, N] out as
            [B, C, T * N] without permuting: q, k and v see channels, steps and samples mixed, and
            an output depends on the rest of the batch.

    Shape: spikes ``[T, B, C, *grid]`` -> the same.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        T: int,
        grid: tuple[int, int],
        neuron: Callable[..., SpikingNeuron],
        stsa: Literal["fixed", "original"],
    ):
        super().__init__()
        if stsa not in ("fixed", "original"):
            raise ValueError(f"stsa must be 'fixed' or 'original', got {stsa!r}")
        self.num_heads, self.stsa = check_heads(dim, num_heads), stsa
        self.sizes = (T, *grid)
        self.qkv = ConvBNNeuron(dim, 3 * dim, neuron=neuron())
        self.attn_neuron = neuron()
        self.proj = ConvBNNeuron(dim, dim, bias=True, neuron=neuron())
        rows = (2 * T - 1) * (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        step = torch.arange(T).repeat_interleave(grid[0] * grid[1])
        not_later = (step[None, :] <= step[:, None]).float()
        self.register_buffer("mask", not_later, persistent=False)
        self.register_buffer("bias_index", _relative_positions(self.sizes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        T, B, C, H, W = x.shape
        if self.sizes != (T, H, W):
            raise ValueError(f"STSA is built for T, H, W = {self.sizes}, got {(T, H, W)}")
        if self.stsa == "original":
            x = x.reshape(B, C, T, H, W).permute(2, 0, 1, 3, 4)
        q, k, v = self._tokens(self.qkv(x)).chunk(3, 1)  # [B, C, T N]
        q, k, v = (y.unflatten(1, (self.num_heads, -1)).mT for y in (q, k, v))  # [B, h, T N, d]
        bias = self.bias_table[self.bias_index].permute(2, 0, 1)
        y = (((q @ k.mT + bias) * self.mask) @ v * 0.125).mT
        y = y.reshape(B, C, T, H, W).permute(2, 0, 1, 3, 4)
        return self.proj(self.attn_neuron(y))

    @staticmethod
    def _tokens(x: Tensor) -> Tensor:
        """[T, B, C, H, W] -> [B, C, T N]"""
        return x.flatten(3).permute(1, 2, 0, 3).flatten(2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, sizes={self.sizes}, stsa={self.stsa}"


def _relative_positions(sizes: tuple[int, int, int]) -> Tensor:
    """Row of the bias table for every query and key, [T N, T N]."""
    where = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")).flatten(1)
    least = torch.tensor([size - 1 for size in sizes]).view(3, 1, 1)
    t, y, x = where[:, :, None] - where[:, None, :] + least
    return (t * (2 * sizes[1] - 1) + y) * (2 * sizes[2] - 1) + x


class DroppedConv2d(nn.Conv2d):
    """1x1 convolution with dropout behind it, in front of BatchNorm."""

    def __init__(self, dim: int, p: float):
        super().__init__(dim, dim, 1)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), self.p, self.training)


class STSAFormer(SpikingNetwork):
    """Two blocks of spatial-temporal attention, activation before addition.

    Args:
        embed_dim, depth, num_heads: channels, blocks, attention heads.
        img_size: pixels, or height and width; the relative biases bind a model to it and to T.
        mlp_drop: dropout in front of the MLPs' BatchNorms.
        stsa: "fixed" or "original", see :class:`~qkformer.peers.stsa.SpatialTemporalAttention`.
        neuron, neuron_args, backend, drop_path_rate: as for
            :class:`~qkformer.models.base.SpikingTransformer`.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int = 1,
        img_size: int | tuple[int, int] = 128,
        mlp_drop: float = 0.3,
        stsa: Literal["fixed", "original"] = "fixed",
        in_chans: int = 3,
        T: int = 16,
        neuron: str | Callable[..., SpikingNeuron] = "lif",
        neuron_args: dict[str, Any] | None = None,
        backend: str = "auto",
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ):
        check_integers(in_chans=(in_chans, 1), T=(T, 1), depth=(depth, 1), embed_dim=(embed_dim, 1))
        check_rates(mlp_drop=mlp_drop, drop_path_rate=drop_path_rate)
        make = neuron_maker(neuron, neuron_args or TDBN_NEURON, backend)
        widths = (16, 32, 64, embed_dim)
        spec = EmbedSpec(tuple(Conv3x3(width, pool="after") for width in widths), rpe=True)
        grid = tuple(size // spec.downsampling for size in to_2tuple(img_size))

        def block(drop_path: float) -> nn.Module:
            residual = partial(Residual, drop_path=drop_path)
            attention = SpatialTemporalAttention(embed_dim, num_heads, T, grid, make, stsa)
            mlp = SpikingMLP(embed_dim, embed_dim, neuron=make)
            for layer in (mlp.fc1, mlp.fc2):
                layer.conv = DroppedConv2d(embed_dim, mlp_drop)
            layers = nn.Sequential()
            layers.add_module("attn", residual(attention))
            layers.add_module("mlp", residual(mlp))
            return layers

        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        embed = PatchEmbed(in_chans, spec, stem=True, neuron=make)
        stage = SpikingStage(embed, map(block, rates), embed_dim, spec.downsampling)
        super().__init__([stage], in_chans=in_chans, T=T, **kwargs)


_CFG = dvs_cfg() | {"fixed_input_size": True}  # timm's word for models with an img_size
register_variants(STSAFormer, {"stsa_2_256": (_CFG, dict(embed_dim=256, depth=2))})
