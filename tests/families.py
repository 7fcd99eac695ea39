"""A small instance of every family, for properties that do not depend on size."""

_NARROW = dict(embed_dim=32, num_heads=4)
# registered name -> options
FAMILIES = {
    "qkformer_4_384": _NARROW,
    "ms_qkformer_4_384": _NARROW,
    "maxformer_4_384": _NARROW,
    "spikformer_4_384": _NARROW | dict(depth=1),
    "cml_spikformer_4_384": _NARROW | dict(depth=1),
    "spikingformer_4_384": _NARROW | dict(depth=1),
    "cml_spikingformer_2_256": _NARROW | dict(depth=1),
    "sdt_2_512": _NARROW | dict(depth=1),
    "sdt_2_256": _NARROW | dict(depth=1, mixer="sdsa_pooled"),
    "metaspikformer_8_384": dict(dims=(8, 16, 16, 24), depths=(1, 1, 1, 1, 1), num_heads=4),
    "espikeformer_t": dict(dims=(8, 16, 16, 24), depths=(1, 1, 1, 1, 1), num_heads=4),
    "espikeformer_12_512": dict(dims=(8, 16, 16), depths=(1, 1, 1, 1), num_heads=4),
    "sew_resnet34": dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
    "sew_resnet101": dict(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), connection="IAND"),
    "resnet19": dict(dims=(8, 16, 16), depths=(1, 1, 1), hidden=8),
    "resnet19_snn": dict(dims=(8, 16, 16), depths=(1, 1, 1), hidden=8),
}
