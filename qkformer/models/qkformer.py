"""QKFormer (NeurIPS 2024, arXiv 2403.16552) and MS-QKFormer, its membrane-shortcut successor."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model

from qkformer.layers.patch_embed import (
    cifar_stem,
    dvs_stem,
    imagenet_stem,
    pool_first,
    pool_last,
    stride_first,
)
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import build, cifar_cfg, dvs_cfg, image_cfg
from qkformer.models.stage import EmbedFunction, hierarchy


class QKFormer(SpikingTransformer):
    """Hierarchical spiking transformer of Q-K attention and SSA.

    Args:
        embed_dim: channels of the last stage; each stage before it has half of the next one's.
        depths: blocks of each stage.
        mixers: token mixer of each stage, names of ``qkformer.layers.MIXERS``.
        num_heads: attention heads of every stage.
        mlp_ratio: hidden width of the MLPs over their width.
        patch_embed: "speds", or "sps" for the same convolutions without the deformed shortcut.
        stem, between: first embedding and the one between stages, as functions of their channels.
        kwargs: those of :class:`~qkformer.models.base.SpikingTransformer`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        mixers: Sequence[str],
        num_heads: int,
        mlp_ratio: float = 4.0,
        patch_embed: str = "speds",
        stem: EmbedFunction,
        between: EmbedFunction,
        **kwargs: Any,
    ):
        stages = hierarchy(
            embed_dim,
            depths,
            mixers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            stem=stem,
            between=between,
            patch_embed=patch_embed,
        )
        super().__init__(stages, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        f"{family}_10_{dim}": image_cfg()
        for family in ("qkformer", "ms_qkformer")
        for dim in (384, 512, 768)
    }
    | {f"{family}_4_384": cifar_cfg() for family in ("qkformer", "ms_qkformer")}
    | {"qkformer_nir_4_384": cifar_cfg()}
    | {f"{family}_2_256": dvs_cfg() for family in ("qkformer", "ms_qkformer")}
)

_IMAGENET = dict(
    depths=(1, 2, 7),
    mixers=("token_qk", "token_qk", "ssa"),
    stem=imagenet_stem,
    between=pool_first,
)
_CIFAR = dict(
    embed_dim=384,
    depths=(1, 1, 2),
    mixers=("token_qk", "token_qk", "ssa"),
    num_heads=8,
    stem=cifar_stem,
    between=pool_last,
)
_DVS = dict(
    embed_dim=256,
    depths=(1, 1),
    mixers=("token_qk", "ssa"),
    num_heads=16,
    mlp_ratio=1.0,
    T=16,
    stem=dvs_stem,
    between=pool_last,
)
_MS_IMAGENET = dict(_IMAGENET, residual="ms", conv_std=0.02)


@register_model
def qkformer_10_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-10-384 for ImageNet-1k: 16,473,688 parameters."""
    defaults = dict(_IMAGENET, embed_dim=384, num_heads=6)
    return build(QKFormer, "qkformer_10_384", pretrained, defaults, kwargs)


@register_model
def qkformer_10_512(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-10-512 for ImageNet-1k: 29,079,336 parameters."""
    defaults = dict(_IMAGENET, embed_dim=512, num_heads=8)
    return build(QKFormer, "qkformer_10_512", pretrained, defaults, kwargs)


@register_model
def qkformer_10_768(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-10-768 for ImageNet-1k: 64,962,760 parameters."""
    defaults = dict(_IMAGENET, embed_dim=768, num_heads=12)
    return build(QKFormer, "qkformer_10_768", pretrained, defaults, kwargs)


@register_model
def qkformer_4_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-4-384 for CIFAR: 6,706,234 parameters with 10 classes, 6,740,884 with 100."""
    return build(QKFormer, "qkformer_4_384", pretrained, _CIFAR, kwargs)


@register_model
def qkformer_nir_4_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-4-384 of what NIR can hold: QKTA in every stage, strides for pools. Ours, untrained."""
    defaults = dict(_CIFAR, mixers=("token_qk",) * 3, between=stride_first)
    return build(QKFormer, "qkformer_nir_4_384", pretrained, defaults, kwargs)


@register_model
def qkformer_2_256(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """HST-2-256 for event data: 1,504,138 parameters with 10 classes.

    The paper's DVS128 Gesture model has 11 classes (1,504,395 parameters); the released one
    ``mlp_ratio=4`` too (1,999,371).
    """
    return build(QKFormer, "qkformer_2_256", pretrained, _DVS, kwargs)


@register_model
def ms_qkformer_10_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """MS-QKFormer for ImageNet-1k: 16,473,688 parameters."""
    defaults = dict(_MS_IMAGENET, embed_dim=384, num_heads=6)
    return build(QKFormer, "ms_qkformer_10_384", pretrained, defaults, kwargs)


@register_model
def ms_qkformer_10_512(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """MS-QKFormer for ImageNet-1k: 29,079,336 parameters."""
    defaults = dict(_MS_IMAGENET, embed_dim=512, num_heads=8)
    return build(QKFormer, "ms_qkformer_10_512", pretrained, defaults, kwargs)


@register_model
def ms_qkformer_10_768(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """MS-QKFormer for ImageNet-1k: 64,962,760 parameters."""
    defaults = dict(_MS_IMAGENET, embed_dim=768, num_heads=12)
    return build(QKFormer, "ms_qkformer_10_768", pretrained, defaults, kwargs)


@register_model
def ms_qkformer_4_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """MS-QKFormer for CIFAR: 6,706,234 parameters with 10 classes."""
    defaults = dict(_CIFAR, residual="ms")
    return build(QKFormer, "ms_qkformer_4_384", pretrained, defaults, kwargs)


@register_model
def ms_qkformer_2_256(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """MS-QKFormer for event data, as described; the published code of this one does not run."""
    defaults = dict(_DVS, residual="ms")
    return build(QKFormer, "ms_qkformer_2_256", pretrained, defaults, kwargs)
