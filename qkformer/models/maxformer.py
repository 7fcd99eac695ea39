"""Max-Former: membrane shortcuts, depth-wise convolutions and max pools in the early stages."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model

from qkformer.layers.patch_embed import cifar_stem, dvs_stem, pool_both, strided_stem
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import build, cifar_cfg, dvs_cfg, image_cfg
from qkformer.models.stage import EmbedFunction, hierarchy


class MaxFormer(SpikingTransformer):
    """Hierarchical spiking transformer whose early stages mix tokens by depth-wise convolution.

    Args:
        embed_dim, depths, mixers, num_heads, mlp_ratio: as for
            :class:`~qkformer.models.qkformer.QKFormer`.
        stem: first embedding as a function of its channels.
        kwargs: those of :class:`~qkformer.models.base.SpikingTransformer`; ``residual`` is "ms".
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        mixers: Sequence[str],
        num_heads: int,
        mlp_ratio: float = 4.0,
        stem: EmbedFunction,
        residual: str = "ms",
        **kwargs: Any,
    ):
        if residual != "ms":
            raise ValueError(f"Max-Former has membrane shortcuts, residual='ms', got {residual!r}")
        stages = hierarchy(
            embed_dim,
            depths,
            mixers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            stem=stem,
            between=pool_both,
        )
        super().__init__(stages, residual=residual, **kwargs)


default_cfgs = generate_default_cfgs(
    {f"maxformer_10_{dim}": image_cfg() for dim in (384, 512, 768)}
    | {"maxformer_4_384": cifar_cfg(), "maxformer_2_256": dvs_cfg()}
)

_IMAGENET = dict(
    depths=(1, 2, 7), mixers=("dwconv7", "dwconv5", "ssa"), stem=strided_stem, conv_std=0.02
)


@register_model
def maxformer_10_384(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """Max-Former for ImageNet-1k: 16,237,240 parameters."""
    defaults = dict(_IMAGENET, embed_dim=384, num_heads=6)
    return build(MaxFormer, "maxformer_10_384", pretrained, defaults, kwargs)


@register_model
def maxformer_10_512(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """Max-Former for ImageNet-1k: 28,653,480 parameters."""
    defaults = dict(_IMAGENET, embed_dim=512, num_heads=8)
    return build(MaxFormer, "maxformer_10_512", pretrained, defaults, kwargs)


@register_model
def maxformer_10_768(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """Max-Former for ImageNet-1k: 63,992,200 parameters."""
    defaults = dict(_IMAGENET, embed_dim=768, num_heads=12)
    return build(MaxFormer, "maxformer_10_768", pretrained, defaults, kwargs)


@register_model
def maxformer_4_384(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """Max-Former for CIFAR: 6,568,282 parameters with 10 classes."""
    defaults = dict(
        embed_dim=384,
        depths=(1, 1, 2),
        mixers=("none", "dwconv3", "ssa"),
        num_heads=8,
        stem=cifar_stem,
    )
    return build(MaxFormer, "maxformer_4_384", pretrained, defaults, kwargs)


@register_model
def maxformer_2_256(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """Max-Former for event data: 1,455,626 parameters with 10 classes, 1,455,883 with 11."""
    defaults = dict(
        embed_dim=256,
        depths=(1, 1),
        mixers=("dwconv3", "ssa"),
        num_heads=16,
        mlp_ratio=1.0,
        T=16,
        stem=dvs_stem,
    )
    return build(MaxFormer, "maxformer_2_256", pretrained, defaults, kwargs)
