"""Spikformer (ICLR 2023, arXiv 2209.15425): one resolution, SSA in every block."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from qkformer.layers.patch_embed import (
    SPSSpec,
    cifar_stem,
    dvs_stem,
    imagenet_stem,
    pool_first,
    pool_last,
)
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import build, cifar_cfg, dvs_cfg, image_cfg
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
        pools: tuple[bool, bool, bool, bool] = (True, True, True, True),
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
            stages = [
                Stage(SPSSpec(embed_dim, pools), embed_dim, depth, mixer, num_heads, mlp_ratio)
            ]
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


default_cfgs = generate_default_cfgs(
    {f"spikformer_8_{dim}": image_cfg() for dim in (384, 512, 768)}
    | {"spikformer_4_384": cifar_cfg(), "spikformer_2_256": dvs_cfg()}
)

_IMAGENET = dict(depth=8, num_heads=8, stem=imagenet_stem, between=pool_first)


@register_model
def spikformer_8_384(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """Spikformer for ImageNet-1k: 16,816,024 parameters."""
    defaults = dict(_IMAGENET, embed_dim=384)
    return build(Spikformer, "spikformer_8_384", pretrained, defaults, kwargs)


@register_model
def spikformer_8_512(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """Spikformer for ImageNet-1k: 29,689,384 parameters."""
    defaults = dict(_IMAGENET, embed_dim=512)
    return build(Spikformer, "spikformer_8_512", pretrained, defaults, kwargs)


@register_model
def spikformer_8_768(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """Spikformer for ImageNet-1k: 66,338,632 parameters."""
    defaults = dict(_IMAGENET, embed_dim=768)
    return build(Spikformer, "spikformer_8_768", pretrained, defaults, kwargs)


@register_model
def spikformer_4_384(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """Spikformer for CIFAR: 9,330,874 published parameters with 10 classes, all norms included."""
    defaults = dict(
        embed_dim=384,
        depth=4,
        num_heads=12,
        pools=(False, False, True, True),
        qkv_bias=True,
        stem=cifar_stem,
        between=pool_last,
    )
    return build(Spikformer, "spikformer_4_384", pretrained, defaults, kwargs)


@register_model
def spikformer_2_256(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """Spikformer for event data; scale 0.25 in its attention."""
    defaults = dict(
        embed_dim=256,
        depth=2,
        num_heads=16,
        attn_scale=0.25,
        T=16,
        stem=dvs_stem,
        between=pool_last,
        speds_stages=2,
    )
    return build(Spikformer, "spikformer_2_256", pretrained, defaults, kwargs)
