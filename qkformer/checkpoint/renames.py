"""Published key names of the models in ``qkformer.peers``, as substitutions in ours."""

import re
from dataclasses import dataclass

from torch import nn

from qkformer.peers import (
    CIFARResNet,
    ESpikeFormer,
    LargeESpikeFormer,
    MaskedSpikingTransformer,
    MetaSpikeFormer,
    SEWResNet,
    STSAFormer,
)
from qkformer.peers.qcfs import QCFS


@dataclass(frozen=True)
class Renames:
    """From our names to those of one published code base.

    Attributes:
        steps: regular expressions and what replaces them, one after the other.
        ndim: pattern of keys -> dimensions of their published shape; both end in ones.
        unused: pattern of keys that take no part in the published forward.
    """

    steps: tuple[tuple[str, str], ...]
    ndim: tuple[tuple[str, int], ...] = ()
    unused: str = r"(?!)"

    def __call__(self, key: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Published name and shape."""
        for pattern, replacement in self.steps:
            key = re.sub(pattern, replacement, key)
        for pattern, ndim in self.ndim:
            if re.fullmatch(pattern, key):
                shape = (*shape, 1)[:ndim]
        return key, shape


_META = (
    (r"^stages\.([01])\.(embed|blocks)", lambda m: f"1_{int(m[1]) + 1}.{m[2]}"),
    (r"^stages\.2\.blocks\.(\d)", lambda m: f"ConvBlock2_{int(m[1]) + 1}.0"),
    (r"^stages\.(\d)\.embed\.", r"downsample\1.encode_"),
    (r"^(1_\d)\.embed\.", r"downsample\1.encode_"),
    (r"^(1_\d)\.blocks", r"ConvBlock\1"),
    (r"^stages\.(\d)\.blocks", r"block\1"),
    (r"\.mlp\.branch\.(0\.)?(fc\d)\.(conv|bn)", r".mlp.\2_\3"),
)
_MLP_NDIM = ((r".*\.mlp\.fc\d_conv\.weight", 3),)
_CHANNEL_CONV = (
    (r"\.conv\.branch\.0\.(conv|bn)", r".\g<1>1"),
    (r"\.conv\.branch\.1\.(conv|bn)", r".\g<1>2"),
)
_NUMBERED = ((r"\.conv\.(?=\w+$)", ".0."), (r"\.bn\.(?=\w+$)", ".1."))  # of a Sequential

METASPIKEFORMER = Renames(
    (
        *_META,
        (r"\.sep\.branch\.0\.conv", ".Conv.pwconv1"),
        (r"\.sep\.branch\.0\.bn", ".Conv.bn1"),
        (r"\.sep\.branch\.1\.layer", ".Conv.dwconv"),
        (r"\.sep\.branch\.2\.conv", ".Conv.pwconv2"),
        (r"\.sep\.branch\.2\.bn", ".Conv.bn2"),
        *_CHANNEL_CONV,
        (r"\.attn\.branch\.(q|k|v|proj)\.", r".attn.\1_conv."),
        (r"\.first\.conv\.", ".0.body.0."),
        (r"\.first\.bn\.", ".0.body.1.bn."),
        (r"\.depthwise\.", ".0.body.2.0."),
        (r"\.last\.conv\.", ".0.body.2.1."),
        (r"\.last\.bn\.0\.", ".0.body.2.2."),
        (r"\.last\.bn\.1\.", ".1."),
        (r"head_dist", "head_kd"),
    ),
    _MLP_NDIM,
)
ESPIKEFORMER = Renames(
    (
        *_META,
        *_CHANNEL_CONV,
        (r"(?<=^ConvBlock)(.*)\.sep\.", r"\1.Conv."),
        (r"\.sep\.", ".conv."),
        (r"\.branch\.0\.", ".pwconv1."),
        (r"\.branch\.1\.", ".dwconv."),
        (r"\.branch\.2\.", ".pwconv2."),
        (r"\.attn\.branch\.(q|k|v|proj)\.", r".attn.\1_conv."),
        *((rf"(?<=(?:_conv|wconv|conv1|conv2)){pattern}", new) for pattern, new in _NUMBERED),
    ),
    _MLP_NDIM,
)
LARGE_ESPIKEFORMER = Renames(
    (
        *_META,
        (r"\.conv\.branch\.0\.", ".conv1.0"),
        (r"\.conv\.branch\.1\.", ".conv2.0"),
        (r"(?<=conv\d\.0)conv\.", ".0."),
        (r"(?<=conv\d\.0)bn\.", ".1."),
        (r"\.rep\.branch\.0\.", ".rep_conv.conv1."),
        (r"\.rep\.branch\.1\.", ".rep_conv.conv2."),
        (r"\.attn\.branch\.1\.factor", ".layer_scale1"),
        (r"\.mlp\.branch\.1\.factor", ".layer_scale2"),
        (r"\.attn\.branch\.0\.(q|k|v|proj)\.", r".attn.\1_conv."),
        (r"_conv\.0\.", "_conv.0.conv1."),
        (r"_conv\.1\.bn\.1\.", "_conv.1."),
        (r"_conv\.1\.bn\.0\.", "_conv.0.conv2.1."),
        (r"_conv\.1\.conv\.", "_conv.0.conv2.0."),
        *((rf"(?<=conv\d){pattern}", new) for pattern, new in _NUMBERED),
        (r"head_dist", "head_kd"),
    ),
    (*_MLP_NDIM, (r".*\.(\w+_conv\.0|rep_conv)\.conv\d\.0\.weight", 3)),
)

SEW_RESNET = Renames(
    (
        (r"^stages\.0\.embed\.conv\.(conv|bn)", r"\g<1>1"),
        (r"^stages\.(\d)\.blocks", lambda m: f"layer{int(m[1]) + 1}"),
        (r"\.branch\.(\d)", lambda m: f".conv{int(m[1]) + 1}.module"),
        (r"\.shortcut", ".downsample.0.module"),
        (r"(?<=module)\.conv\.", ".0."),
        (r"(?<=module)\.bn\.", ".1."),
        (r"^head\.", "fc."),
    ),
)
STSA = Renames(
    (
        (r"^stages\.0\.embed\.convs\.(\d)\.", lambda m: f"conv_stem.block{int(m[1]) + 1}_"),
        (r"^stages\.0\.embed\.rpe\.branch\.", "conv_stem.block5_"),
        (r"^stages\.0\.blocks", "block"),
        (r"\.(attn|mlp)\.branch\.(qkv|proj|fc\d)\.", r".\1.\2_"),
        (r"\.attn\.branch\.bias_table", ".attn.relative_position_bias_table"),
        (r"^head\.", "classification."),
    ),
    ((r".*\.attn\.\w+_conv\.weight", 3), (r".*\.mlp\.\w+_conv\.weight", 5)),
    r".*\.attn\.(to_qkv_(proj|bn)\..*|mask_mat|relative_position_index)",
)
QCFS_RESNET = Renames(
    (
        (r"^stages\.0\.embed\.conv\.", "conv1.0."),
        (r"^stages\.0\.embed\.bn\.", "conv1.1."),
        (r"^stages\.0\.embed\.neuron\.", "conv1.2."),
        (r"^stages\.(\d)\.blocks", lambda m: f"conv{int(m[1]) + 2}_x"),
        (r"\.branch\.0\.conv\.", ".residual_function.0."),
        (r"\.branch\.0\.bn\.", ".residual_function.1."),
        (r"\.branch\.0\.neuron\.", ".residual_function.2."),
        (r"\.branch\.1\.conv\.", ".residual_function.3."),
        (r"\.branch\.1\.bn\.", ".residual_function.4."),
        (r"\.shortcut\.conv\.", ".shortcut.0."),
        (r"\.shortcut\.bn\.", ".shortcut.1."),
        (r"\.neuron\.", ".act."),
        (r"theta", "thresh"),
        (r"^head\.", "fc."),
    ),
)
MST = Renames(
    (
        (r"^stages\.0\.embed\.", "patch_embed."),
        (r"^stages\.(\d)\.embed\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"downsample\.act", "downsample.reduction_if"),
        (r"^stages\.\d\.blocks\.\d+\.(weight|bias)$", r"norm.\1"),
        (r"^stages\.", "layers."),
        (r"patch_embed\.act", "patch_embed.proj_if"),
        (r"\.act(\d)\.", r".shortcut\1_if."),
        (r"out_act", "attn_v_if"),
        (r"_act\.", "_if."),
        (r"\.fc(\d)\.conv\.", r".mlp.fc\1."),
        (r"\.fc(\d)\.bn\.", r".mlp.norm\1."),
        (r"\.fc(\d)\.neuron\.", r".mlp.fc\1_if."),
        (r"bias_table", "relative_position_bias_table"),
        (r"\.layer\.", "."),
        (r"theta", "up"),
    ),
    ((r".*\.(qkv|fc\d|attn\.proj|reduction)\.weight", 2),),
    r".*\.(relative_position_index|attn_mask)",
)

RENAMES: dict[type[nn.Module], Renames] = {
    MetaSpikeFormer: METASPIKEFORMER,
    ESpikeFormer: ESPIKEFORMER,
    LargeESpikeFormer: LARGE_ESPIKEFORMER,
    SEWResNet: SEW_RESNET,
    STSAFormer: STSA,
    MaskedSpikingTransformer: MST,
}


def renames_of(model: nn.Module) -> Renames | None:
    """None for a model whose names are no substitutions in ours."""
    if isinstance(model, CIFARResNet):  # ResNet-19 is of no published file
        return QCFS_RESNET if any(isinstance(m, QCFS) for m in model.modules()) else None
    return RENAMES.get(type(model))
