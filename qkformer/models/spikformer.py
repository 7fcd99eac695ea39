"""Spikformer (ICLR 2023, arXiv 2209.15425): one resolution, SSA in every block; CML's too."""

from typing import Any

from qkformer.layers.patch_embed import (
    Pool,
    Pools,
    cifar_stem,
    dvs_stem,
    imagenet_stem,
    pool_first,
    pool_last,
    sps,
)
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import cifar_cfg, dvs_cfg, image_cfg, register_variants
from qkformer.models.stage import EmbedFunction, Stage, hierarchy


class Spikformer(SpikingTransformer):
    """Spiking transformer on one resolution, activation before addition.

    Args:
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mixer: token mixer of every block, a name of ``qkformer.layers.MIXERS``.
        mlp_ratio: hidden width of the MLPs over ``embed_dim``.
        patch_embed: "sps", or "speds" for QKFormer's embeddings, one after the other, to the same
            resolution and width (the ablation "Spikformer with SPEDS").
        pools: which of SPS's convolutions are pooled.
        pool: "after" their neurons, or "before" them (CML, arXiv 2305.05954: the pool's gradient
            is then exact).
        stem, between: QKFormer's embeddings for "speds", as functions of their channels.
        speds_stages: how many of them.
        residual, ssa: "aba" and "fixed"; Spikformer's attention never had QKFormer's leak.
        kwargs: the others of :class:`~qkformer.models.base.SpikingTransformer`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mixer: str = "ssa",
        mlp_ratio: float = 4.0,
        patch_embed: str = "sps",
        pools: Pools = (True, True, True, True),
        pool: Pool = "after",
        stem: EmbedFunction,
        between: EmbedFunction,
        speds_stages: int = 3,
        residual: str = "aba",
        ssa: str = "fixed",
        **kwargs: Any,
    ):
        if residual != "aba":
            raise ValueError(f"Spikformer activates before addition, 'aba'; got {residual!r}")
        if ssa != "fixed":
            raise ValueError(f"ssa={ssa!r} is QKFormer's leak; Spikformer has 'fixed' only")
        if patch_embed == "sps":
            embed = sps(embed_dim, pools, pool)
            stages = [Stage(embed, embed_dim, depth, mixer, num_heads, mlp_ratio)]
        else:
            stages = hierarchy(
                embed_dim,
                depths=(0,) * (speds_stages - 1) + (depth,),
                mixers=(mixer,) * speds_stages,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                stem=stem,
                between=between,
                patch_embed=patch_embed,
            )
        super().__init__(stages, **kwargs)


_IMAGENET = dict(depth=8, num_heads=8, stem=imagenet_stem, between=pool_first)
CIFAR = dict(embed_dim=384, depth=4, num_heads=12, stem=cifar_stem, between=pool_last)
CIFAR |= dict(pools=(False, False, True, True), qkv_bias=True)
_DVS = dict(embed_dim=256, depth=2, num_heads=16, stem=dvs_stem, between=pool_last)
_DVS |= dict(attn_scale=0.25, T=16, speds_stages=2)

for _prefix, _pool in (("spikformer", "after"), ("cml_spikformer", "before")):
    _variants = {
        f"{_prefix}_8_{dim}": (image_cfg(), dict(_IMAGENET, embed_dim=dim, pool=_pool))
        for dim in (384, 512, 768)
    }
    _variants[f"{_prefix}_4_384"] = (cifar_cfg(), dict(CIFAR, pool=_pool))
    _variants[f"{_prefix}_2_256"] = (dvs_cfg(), dict(_DVS, pool=_pool))
    register_variants(Spikformer, _variants)
