"""A small instance of every family, for properties that do not depend on size."""

_NARROW = dict(embed_dim=32, num_heads=4)
# registered name -> options
FAMILIES = {
    "qkformer_4_384": _NARROW,
    "ms_qkformer_4_384": _NARROW,
    "maxformer_4_384": _NARROW,
    "spikformer_4_384": _NARROW | dict(depth=1),
    "cml_spikformer_4_384": _NARROW | dict(depth=1),
    "spikingformer_4_384": _NARROW | dict(depth=1, num_heads=2),
    "cml_spikingformer_2_256": _NARROW | dict(depth=1, num_heads=2),
    "sdt_2_512": _NARROW | dict(depth=1),
    "sdt_2_256": _NARROW | dict(depth=1, mixer="sdsa_pooled"),
    "metaspikformer_8_384": dict(dims=(8, 16, 16, 24), depths=(1, 1, 1, 1, 1), num_heads=4),
    "espikeformer_t": dict(dims=(8, 16, 16, 24), depths=(1, 1, 1, 1, 1), num_heads=4),
    "espikeformer_12_512": dict(dims=(8, 16, 16), depths=(1, 1, 1, 1), num_heads=4),
    "transformer_4_384": _NARROW | dict(depth=1),
    "stsa_2_256": dict(embed_dim=32, depth=1, img_size=(32, 48), mlp_drop=0.0),
    "sew_resnet34": dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
    "sew_resnet101": dict(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), connection="IAND"),
    "resnet19": dict(stem_dim=8, dims=(8, 16, 16), depths=(1, 1, 1), hidden=8),
    "resnet19_snn": dict(stem_dim=8, dims=(8, 16, 16), depths=(1, 1, 1), hidden=8),
    "qcfs_resnet18": dict(stem_dim=8, dims=(8, 16), depths=(1, 1)),
    "mst_swin_t": dict(embed_dim=8, depths=(2, 1), num_heads=(1, 2), window=2),
}
ANNS = ("transformer_4_384", "resnet19", "qcfs_resnet18", "mst_swin_t")  # without neurons
