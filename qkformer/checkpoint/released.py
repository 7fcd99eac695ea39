"""Key names of the published state dicts, made from a model's own structure.

A Dialect holds the names one published code base uses; released_names walks a model and pairs its
keys with them; for the models in ``qkformer.peers`` that is done by ``renames``. Shapes may differ
in trailing ones: what is a 1x1 convolution here was a Conv1d, Conv2d or Linear there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from qkformer.checkpoint.renames import renames_of
from qkformer.layers import (
    ConvBNNeuron,
    QKTokenAttention,
    SpikeDrivenAttention,
    SpikingMLP,
    SpikingSelfAttention,
)
from qkformer.models import (
    MaxFormer,
    QKFormer,
    SpikeDrivenTransformer,
    Spikformer,
    Spikingformer,
    SpikingNetwork,
    SpikingTransformer,
)


class NoPublishedNames(ValueError):
    """The model has a part that no published code has, so there is no name for it."""


@dataclass(frozen=True)
class Dialect:
    """Names in one published code base; "{}" stands for "conv" or "bn", or a pair gives both.

    Attributes:
        stem, stem_shortcut: convolutions of the first embedding, "" for no shortcut.
        between, between_shortcut: convolutions of the other embeddings.
        token_qk, ssa: prefix of the attention modules.
        depthwise: kernel size -> names of the depth-wise convolution and its BatchNorm.
        mlp: the two layers of the MLP.
        linear: word for the convolution in attention and MLP: "conv" or "linear".
        attention_ndim, mlp_ndim: dimensions of their weights.
        embed, block: prefixes, with the number of stage and block.
        unused: pattern of keys that take no part in the published forward.
    """

    stem: tuple[str, ...]
    stem_shortcut: str = ""
    between: tuple[str, ...] = ()
    between_shortcut: str = ""
    token_qk: str = "attn"
    ssa: str = "attn"
    depthwise: tuple[tuple[int, tuple[str, str]], ...] = ()
    mlp: tuple[str, str] = ("fc1_{}", "fc2_{}")
    linear: str = "conv"
    attention_ndim: int = 3
    mlp_ndim: int = 4
    embed: str = "patch_embed{stage}."
    block: str = "stage{stage}.{block}."
    unused: str = r"(?!)"


_PROJ = ("proj_{}", "proj1_{}", "proj2_{}", "proj3_{}")
_PROJ_34 = dict(between=("proj3_{}", "proj4_{}"), between_shortcut="proj_res_{}")
_MAX_EMBED = dict(
    between=("max_embed1.embed_{}", "embed1.embed_{}"),
    between_shortcut="max_embed2.embed_{}",
    depthwise=(
        (7, ("mixer.conv5", "mixer.conv5_bn")),  # 7x7 in fact, whatever the name says
        (5, ("mixer.conv", "mixer.conv_bn")),
        (3, ("mixer.conv", "mixer.conv_bn")),
    ),
)
_FLAT = dict(
    embed="patch_embed.",
    block="block.{block}.",
    unused=r"(block\.\d+\.norm[12]|norm)\.(weight|bias)|pos_embed",
)
_SPS = dict(_FLAT, stem=tuple(f"proj_{{}}{i}" for i in ("", 1, 2, 3)), stem_shortcut="rpe_{}")
_LINEAR = dict(linear="linear", attention_ndim=2, mlp_ndim=2)

# family and number of convolutions in the stem (3 ImageNet, 2 CIFAR, 4 event data) -> dialect
QKFORMER = {
    3: Dialect(_PROJ[:3], "proj_res_{}", **_PROJ_34, token_qk="tssa"),
    2: Dialect(
        _PROJ[:2],
        "proj_res_{}",
        **_PROJ_34,
        token_qk="tssa",
        ssa="ssa",
        mlp=("mlp1_{}", "mlp2_{}"),
    ),
    4: Dialect(
        _PROJ,
        "proj_res_{}",
        between=("proj_{}", "proj4_{}"),
        between_shortcut="proj_res_{}",
        token_qk="tssa",
        ssa="ssa",
        mlp=("mlp1_{}", "mlp2_{}"),
    ),
}
MS_QKFORMER = {
    3: Dialect(("proj_{}", "proj_{}1", "proj_{}2"), "rpe_{}", **_PROJ_34),
    2: Dialect(
        ("proj_{}", "embed1.embed_{}"),
        "embed2.embed_{}",
        between=("embed1.embed_{}", "max_embed1.embed_{}"),
        between_shortcut="embed2.embed_{}",
    ),
}
MAXFORMER = {
    3: Dialect(
        ("embed1.embed_{}", "embed2.embed_{}", "embed3.embed_{}"), "embed4.embed_{}", **_MAX_EMBED
    ),
    2: Dialect(("proj_{}", "embed1.embed_{}"), "embed2.embed_{}", **_MAX_EMBED),
    4: Dialect(
        ("proj_{}", *(f"max_embed{i}.embed_{{}}" for i in (1, 2, 3))),
        "embed1.embed_{}",
        **_MAX_EMBED,
    ),
}
SPIKFORMER = {
    "imagenet": Dialect(**_SPS),
    "cifar": Dialect(**_SPS, **_LINEAR),
    "dvs": Dialect(**_SPS, mlp_ndim=3),
    "cml cifar": Dialect(
        **_LINEAR | _SPS | dict(stem=tuple(f"block{i}_{{}}" for i in (1, 2, 3, 4)))
    ),
}
SDT = Dialect(**_SPS | dict(attention_ndim=4, unused=r"block\.\d+\.attn\.talking_heads\.weight"))
_FIVE = ("", 1, 2, 3, 4)
SPIKINGFORMER = Dialect(
    **_FLAT, stem=tuple(f"proj{i}_{{}}" for i in _FIVE), mlp=("mlp1_{}", "mlp2_{}")
)
SPIKINGFORMER_CIFAR = replace(SPIKINGFORMER, stem=tuple(f"block{i}_{{}}" for i in range(5)))


def dialect_of(model: SpikingTransformer) -> Dialect:
    """The names under which such a model was published.

    Raises:
        NoPublishedNames: no such model was.
    """
    if not isinstance(model, SpikingTransformer):
        raise NoPublishedNames(f"{type(model).__name__} has no published names")
    embed = model.stages[0].embed
    if isinstance(model, Spikformer):
        if embed.rpe is None:
            raise NoPublishedNames("Spikformer with patch_embed='speds' has no published names")
        cifar = any(name.endswith(".q.conv.bias") for name, _ in model.named_parameters())
        if any(conv.pool == "before" for conv in embed.convs):
            if not cifar:
                raise NoPublishedNames("of CML Spikformer only the model for CIFAR was published")
            return SPIKFORMER["cml cifar"]
        return SPIKFORMER["cifar" if cifar else "dvs" if model.in_chans == 2 else "imagenet"]
    if isinstance(model, SpikeDrivenTransformer):
        return SDT
    if isinstance(model, Spikingformer):
        pools = [conv.pool for conv in embed.convs]
        return SPIKINGFORMER_CIFAR if pools[0] is None and "after" in pools else SPIKINGFORMER
    if isinstance(model, MaxFormer):
        family = MAXFORMER
    elif isinstance(model, QKFormer):
        family = MS_QKFORMER if model.head_neuron is not None else QKFORMER
    else:
        family = {}
    if len(embed.convs) not in family:
        raise NoPublishedNames(f"{type(model).__name__} with this stem has no published names")
    return family[len(embed.convs)]


def released_names(model: SpikingNetwork) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our key -> published key and shape, for the whole state dict.

    Raises:
        NoPublishedNames: the model, or a part of it, was not published.
    """
    if not isinstance(model, SpikingNetwork):
        raise NoPublishedNames(f"{type(model).__name__} is timm's")
    rename = renames_of(model)
    if rename is not None:
        return {key: rename(key, tuple(v.shape)) for key, v in model.state_dict().items()}
    modules = {"head": ("head", None)}
    for name, conv, bn, ndim in _layers(model, dialect_of(model)):
        modules[f"{name}.conv"] = (conv, ndim)
        modules[f"{name}.bn"] = (bn, None)
    names = {}
    for key, value in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if module not in modules:
            raise NoPublishedNames(f"{key} has no published name")
        released, ndim = modules[module]
        shape = tuple(value.shape)
        names[key] = (f"{released}.{leaf}", shape[:ndim] if leaf == "weight" else shape)
    return names


def released_state_dict(model: SpikingNetwork) -> dict[str, Tensor]:
    """The model's weights under their published names and in their published shapes.

    Keys that take no part in the published forward (Spikformer's norms and positional embedding)
    have no counterpart and are left out.

    Options without parameters (``neuron="if"``, ``residual="pa"``, ...) do not show in the names.

    Raises:
        NoPublishedNames: the model, or a part of it, has no counterpart in the published code.
    """
    state = model.state_dict()
    return {
        released: state[key].reshape(shape)
        for key, (released, shape) in released_names(model).items()
    }


def unused_keys(model: SpikingNetwork) -> re.Pattern:
    """What a published file's keys that take no part in the published forward match in full."""
    renames = renames_of(model) or dialect_of(model)
    return re.compile(renames.unused)


def _layers(
    model: SpikingTransformer, dialect: Dialect
) -> Iterator[tuple[str, str, str, int | None]]:
    """Our name, published convolution, published BatchNorm, dimensions of its weight (or None)."""
    for s, stage in enumerate(model.stages):
        prefix = dialect.embed.format(stage=s + 1)
        convs = dialect.between if s else dialect.stem
        shortcut = dialect.between_shortcut if s else dialect.stem_shortcut
        for i, name in enumerate(convs):
            yield f"stages.{s}.embed.convs.{i}", *_pair(prefix + name), None
        if shortcut:
            where = "shortcut" if stage.embed.rpe is None else "rpe.branch"
            yield f"stages.{s}.embed.{where}", *_pair(prefix + shortcut), None
        for b, block in enumerate(stage.blocks):
            prefix = dialect.block.format(stage=s + 1, block=b)
            for name, residual in block.named_children():
                ours = f"stages.{s}.blocks.{b}.{name}.branch"
                for layer, conv, bn, ndim in _branch(name, residual.branch, dialect):
                    yield ours + layer, prefix + conv, prefix + bn, ndim


def _branch(
    name: str, branch: nn.Module, dialect: Dialect
) -> Iterator[tuple[str, str, str, int | None]]:
    """Layers of a block's branch, as in :func:`_layers` but relative to it."""
    fc1, fc2 = (_pair(f"mlp.{fc}", dialect.linear) for fc in dialect.mlp)
    if isinstance(branch, SpikingMLP):
        yield ".fc1", *fc1, dialect.mlp_ndim
        yield ".fc2", *fc2, dialect.mlp_ndim
    elif name in ("fc1", "fc2"):
        yield "", *(fc1 if name == "fc1" else fc2), dialect.mlp_ndim
    elif isinstance(branch, QKTokenAttention | SpikeDrivenAttention | SpikingSelfAttention):
        token_qk = isinstance(branch, QKTokenAttention)
        module = dialect.token_qk if token_qk else dialect.ssa
        for layer in ("q", "k", "proj") if token_qk else ("q", "k", "v", "proj"):
            pair = _pair(f"{module}.{layer}_{{}}", dialect.linear)
            yield f".{layer}", *pair, dialect.attention_ndim
    elif isinstance(branch, ConvBNNeuron):
        names = dict(dialect.depthwise).get(branch.conv.kernel_size[0])
        if names is None:
            raise NoPublishedNames(f"this family was not published with a {name} like {branch}")
        yield "", *names, None
    else:
        raise NoPublishedNames(f"{type(branch).__name__} has no published names")


def _pair(template: str, conv: str = "conv") -> tuple[str, str]:
    return template.format(conv), template.format("bn")
