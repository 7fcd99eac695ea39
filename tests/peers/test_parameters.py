"""Parameters are as many as the publications' code has, at every published size."""

import math

import pytest
import torch
from published import published_shapes

import qkformer
from qkformer.checkpoint.released import unused_keys

KD = dict(distilled=True)
# name, options, all parameters of the published code
PUBLISHED = [
    ("spikingformer_8_384", {}, 16_828_312),
    ("spikingformer_8_512", {}, 29_705_768),
    ("spikingformer_8_768", {}, 66_363_208),
    ("spikingformer_4_384", {}, 9_326_266),
    ("spikingformer_4_384", dict(num_classes=100), 9_360_916),
    ("spikingformer_4_384", dict(embed_dim=256, num_heads=8), 4_156_202),
    ("spikingformer_4_384", dict(depth=2), 5_765_818),
    ("spikingformer_2_256", {}, 2_568_714),
    ("spikingformer_2_256", dict(num_classes=11), 2_568_971),
    ("cml_spikingformer_8_384", {}, 16_828_312),
    ("cml_spikingformer_8_512", {}, 29_705_768),
    ("cml_spikingformer_8_768", {}, 66_363_208),
    ("cml_spikingformer_4_384", {}, 9_326_266),
    ("cml_spikingformer_2_256", {}, 2_568_714),
    ("cml_spikformer_4_384", {}, 9_330_874),
    ("sdt_8_384", {}, 16_816_536),
    ("sdt_6_512", {}, 23_373_736),
    ("sdt_8_512", {}, 29_689_896),
    ("sdt_10_512", {}, 36_006_056),
    ("sdt_8_768", {}, 66_339_144),
    ("sdt_2_512", {}, 10_233_546),
    ("sdt_2_512", dict(num_classes=100), 10_279_716),
    ("sdt_2_512", dict(embed_dim=256), 2_567_082),
    ("sdt_2_256", {}, 2_566_794),
    ("sdt_2_256", dict(num_classes=11), 2_567_051),
    ("metaspikformer_8_384", {}, 31_333_864),
    ("metaspikformer_8_384", KD, 31_814_864),
    ("metaspikformer_8_512", {}, 55_350_248),
    ("metaspikformer_8_512", KD, 55_991_248),
    ("metaspikformer_8_768", {}, 123_741_160),
    ("metaspikformer_8_768", KD, 124_702_160),
    ("espikeformer_t", {}, 2_702_048),
    ("espikeformer_s", {}, 5_105_608),
    ("espikeformer_m", {}, 10_023_112),
    ("espikeformer_l", {}, 18_987_504),
    ("espikeformer_12_512", {}, 83_015_952),
    ("espikeformer_12_512", dict(distilled=False), 82_502_952),
    ("espikeformer_12_768", {}, 171_740_714),
    ("espikeformer_12_768", dict(distilled=False), 170_971_714),
    ("sew_resnet34", {}, 21_797_672),
    ("sew_resnet101", {}, 44_549_160),
    ("sew_resnet152", {}, 60_192_808),
    ("resnet19", {}, 12_630_858),
    ("resnet19", dict(num_classes=100), 12_653_988),
    ("resnet19_snn", {}, 12_630_858),
    ("stsa_2_256", dict(num_classes=11), 1_969_033),
    ("stsa_2_256", dict(num_classes=11, T=4), 1_958_233),
    ("qcfs_resnet18", {}, 11_173_979),
    ("qcfs_resnet18", dict(num_classes=1000), 11_681_849),
    ("mst_swin_t", {}, 28_332_514 + 124),  # with its thresholds
]
NOT_COUNTED = {"qkformer", "ms_qkformer", "maxformer", "spikformer"}  # test_models_page.py
# the layers of Spikformer for CIFAR; CML Spikformer's other sizes, as Spikformer's: no code
UNPUBLISHED = {"transformer_4_384", *(f"cml_spikformer_{size}" for size in ("8_384", "8_512"))}
UNPUBLISHED |= {"cml_spikformer_8_768", "cml_spikformer_2_256", "qkformer_nir_4_384"}


def unused(model) -> int:
    """Parameters of the published code that take no part in its forward."""
    name = model.pretrained_cfg["architecture"]
    if name.startswith("stsa"):
        pattern = unused_keys(model)
        shapes = published_shapes("stsa__dvs128gesture")
        computed = r"mask_mat|relative_position_index|running_|num_batches"
        return sum(
            math.prod(shape)
            for key, shape in shapes.items()
            if pattern.fullmatch(key) and not any(word in key for word in computed.split("|"))
        )
    blocks, dim = len(model.stages[-1].blocks), model.num_features
    if "spik" in name and not name.startswith(("meta", "e")):
        return 4 * dim * blocks  # two LayerNorms
    return 64 * blocks if name.startswith("sdt") else 0  # talking heads


@pytest.mark.parametrize(("name", "options", "count"), PUBLISHED, ids=str)
def test_parameters_are_those_of_the_published_code(name, options, count):
    with torch.device("meta"):
        model = qkformer.create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) + unused(model) == count


def test_every_name_is_counted():
    counted = {name for name, _, _ in PUBLISHED} | UNPUBLISHED
    family = {name: name.rstrip("0123456789_") for name in qkformer.list_models()}
    assert {name for name in family if family[name] not in NOT_COUNTED} == counted
