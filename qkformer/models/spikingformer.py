"""Spikingformer (arXiv 2304.11954): one resolution, SSA, membrane shortcuts; CML's too."""

from typing import Any

from qkformer.layers.patch_embed import Pool, Pools, five_convs
from qkformer.models.base import SpikingTransformer
from qkformer.models.registry import cifar_cfg, dvs_cfg, image_cfg, register_variants
from qkformer.models.stage import Stage


class Spikingformer(SpikingTransformer):
    """Spiking transformer on one resolution, membrane shortcuts, a head that takes currents.

    Args:
        embed_dim, depth, num_heads, mixer, mlp_ratio, pools, pool: as for
            :class:`~qkformer.models.spikformer.Spikformer`; the pools are of the stem's first four
            convolutions.
        kwargs: those of :class:`~qkformer.models.base.SpikingTransformer`; ``residual`` is "ms".
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mixer: str = "ssa",
        mlp_ratio: float = 4.0,
        pools: Pools = (True, True, True, True),
        pool: Pool = "after",
        residual: str = "ms",
        **kwargs: Any,
    ):
        if residual != "ms":
            raise ValueError(f"Spikingformer has membrane shortcuts, 'ms', got {residual!r}")
        embed = five_convs(embed_dim, pools, pool)
        stage = Stage(embed, embed_dim, depth, mixer, num_heads, mlp_ratio)
        super().__init__([stage], residual=residual, **kwargs)
        self.head_neuron = None  # as published: not spike-driven


def _variants(prefix: str, events_tau: float, **options: Any) -> dict[str, tuple[dict, dict]]:
    """The published sizes, with ``options``."""
    imagenet = {
        f"{prefix}_8_{dim}": (image_cfg(), dict(embed_dim=dim, depth=8, num_heads=8, **options))
        for dim in (384, 512, 768)
    }
    cifar = dict(embed_dim=384, depth=4, num_heads=12, pools=(False, False, True, True), **options)
    events = dict(embed_dim=256, depth=2, num_heads=16, T=16, **options)
    events["neuron_args"] = {"tau": events_tau}
    small = {f"{prefix}_4_384": (cifar_cfg(), cifar), f"{prefix}_2_256": (dvs_cfg(), events)}
    return imagenet | small


register_variants(Spikingformer, _variants("spikingformer", 1.5))
register_variants(Spikingformer, _variants("cml_spikingformer", 1.75, pool="before"))
