"""Spikingformer, CML, Spike-driven Transformer and the ANN transformer (under our names)."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from naive.layers import conv_norm, fire, grid, linear, max_pool, parts, product
from naive_qkformer import State, heads_of
from torch import Tensor

Layer = Callable[[str, Tensor], Tensor]  # a convolution and its BatchNorm, by name


def flat(state: State) -> tuple[list[str], list[str], Layer]:
    """The stem's layers, the blocks, and what computes a layer: with one word for each thing."""
    words = {"_linear": "_conv", "mlp.mlp": "mlp.fc"}
    words |= {"stages.0.embed.": "patch_embed.", "stages.0.blocks.": "block."}  # ours
    words |= {"mixer.branch": "attn", ".branch": "", ".conv.": "_conv.", ".bn.": "_bn."}
    renamed = {}
    for key, value in state.items():
        for old, new in words.items():
            key = key.replace(old, new)
        renamed[key] = value
    stem = [m[1] for key in renamed if (m := re.match(r"(patch_embed.*conv\d?)\.weight", key))]
    blocks = parts(renamed, r"block\.\d+")

    def layer(name: str, x: Tensor) -> Tensor:
        name = name if "conv" in name else f"{name}_conv"
        return conv_norm(renamed, (name, name.replace("_conv", "_bn")), x)

    return stem, blocks, layer


def chain(
    layer: Layer, names: list[str], pools: Sequence[bool], before: bool, lif: Callable, x: Tensor
) -> Tensor:
    for name, pooled in zip(names, pools, strict=True):
        x = layer(name, x)
        x = lif(max_pool(x) if pooled and before else x)
        x = max_pool(x) if pooled and not before else x
    return x


def ssa(layer: Layer, name: str, x: Tensor, heads: int, lif: Callable) -> Tensor:
    q, k, v = (lif(layer(f"{name}.{part}", x)) for part in "qkv")
    return layer(f"{name}.proj", lif(grid(0.125 * product(q, k, v, heads), x), 0.5))


def mlp(layer: Layer, name: str, x: Tensor, lif: Callable) -> Tensor:
    return layer(f"{name}.fc2", lif(layer(f"{name}.fc1", x)))


def spikingformer(
    state: State, x: Tensor, heads: int, pools: Sequence[bool], before=False, tau=2.0
) -> Tensor:
    lif = partial(fire, tau=tau)
    (*stem, last), blocks, layer = flat(state)
    x = layer(last, chain(layer, stem, pools, before, lif, x))
    for name in blocks:
        x = x + ssa(layer, f"{name}.attn", lif(x), heads, lif)
        x = x + mlp(layer, f"{name}.mlp", lif(x), lif)
    return linear(state, "head", x.mean((0, 3, 4)))


def cml_spikformer(state: State, x: Tensor, heads: int, pools: Sequence[bool]) -> Tensor:
    (*stem, rpe), blocks, layer = flat(state)
    x = chain(layer, stem, pools, True, fire, x)
    x = x + fire(layer(rpe, x))
    for name in blocks:
        x = x + fire(ssa(layer, f"{name}.attn", x, heads, fire))
        x = x + fire(mlp(layer, f"{name}.mlp", x, fire))
    return linear(state, "head", x.mean((0, 3, 4)))


def transformer(state: State, x: Tensor, heads: int, pools: Sequence[bool]) -> Tensor:
    (*stem, rpe), blocks, layer = flat(state)
    x = chain(layer, stem, pools, False, F.relu, x)
    x = x + F.relu(layer(rpe, x))
    for name in blocks:
        q, k, v = (heads_of(layer(f"{name}.attn.{part}", x), heads) for part in "qkv")
        attention = torch.einsum("...dn,...dm->...nm", q / q.shape[3] ** 0.5, k).softmax(-1)
        y = torch.einsum("...nm,...em->...en", attention, v)
        x = x + F.relu(layer(f"{name}.attn.proj", grid(y.flatten(2, 3), x)))
        x = x + F.relu(mlp(layer, f"{name}.mlp", x, F.relu))
    return linear(state, "head", x.mean((0, 3, 4)))


def sdt(state: State, x: Tensor, heads: int, pools: Sequence[bool], pooled=False) -> Tensor:
    """pooled: the form for CIFAR10-DVS."""
    (*stem, last, rpe), blocks, layer = flat(state)
    u = layer(last, chain(layer, stem, pools[:3], False, fire, x))
    u = max_pool(u) if pools[3] else u
    x = u + layer(rpe, fire(u))
    for name in blocks:
        q, k, v = (fire(layer(f"{name}.attn.{part}", fire(x))) for part in "qkv")
        if pooled:
            k, v = max_pool(k, 1), max_pool(v, 1)
        kv = over_tokens_and_channels(k * v, heads) if pooled else k * v
        passed = q * fire(kv.sum((3, 4), keepdim=True), 0.5)
        passed = over_tokens_and_channels(passed, heads) if pooled else passed
        x = x + layer(f"{name}.attn.proj", passed)
        x = x + mlp(layer, f"{name}.mlp", fire(x), fire)
    return linear(state, "head", fire(x.mean((3, 4)))).mean(0)


def over_tokens_and_channels(x: Tensor, heads: int) -> Tensor:
    """A max pool over every head's [N, C / heads], as if it were an image."""
    images = heads_of(x, heads).transpose(3, 4)
    images = torch.stack([max_pool(head, 1) for head in images.unbind(2)], 2)
    return images.transpose(3, 4).reshape(x.shape)
