"""Spike-driven Transformer (NeurIPS 2023, arXiv 2307.01694): SDSA, one resolution, currents."""

from typing import Any

from torch import nn

from qkformer.layers.patch_embed import Pools, sps
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import cifar_cfg, dvs_cfg, image_cfg, register_variants
from qkformer.models.stage import Stage


class SpikeDrivenTransformer(SpikingTransformer):
    """Spiking transformer on one resolution, membrane shortcuts, attention without products.

    Args:
        embed_dim, depth, num_heads, mixer, mlp_ratio, pools: as for
            :class:`~qkformer.models.spikformer.Spikformer`.
        kwargs: those of :class:`~qkformer.models.base.SpikingTransformer`; ``residual`` is "ms".
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int = 8,
        mixer: str = "sdsa",
        mlp_ratio: float = 4.0,
        pools: Pools = (True, True, True, True),
        residual: str = "ms",
        conv_std: float | None = 0.02,
        **kwargs: Any,
    ):
        if residual != "ms":
            raise ValueError(f"S-Transformer has membrane shortcuts, 'ms', got {residual!r}")
        stage = Stage(sps(embed_dim, pools), embed_dim, depth, mixer, num_heads, mlp_ratio)
        super().__init__([stage], residual=residual, conv_std=conv_std, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)


register_variants(
    SpikeDrivenTransformer,
    {
        f"sdt_{depth}_{dim}": (image_cfg(crop_pct=0.95), dict(embed_dim=dim, depth=depth))
        for depth, dim in ((8, 384), (6, 512), (8, 512), (10, 512), (8, 768))
    }
    | {
        "sdt_2_512": (cifar_cfg(), dict(embed_dim=512, depth=2, pools=(False, False, True, True))),
        # Pools and mixer of DVS128 Gesture; CIFAR10-DVS: as CIFAR's and "sdsa_pooled".
        "sdt_2_256": (
            dvs_cfg(),
            dict(embed_dim=256, depth=2, T=16, pools=(False, True, True, True)),
        ),
    },
)
