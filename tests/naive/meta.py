"""Meta-SpikeFormer and E-SpikeFormer."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from naive.layers import (
    conv,
    conv_norm,
    fire,
    grid,
    linear,
    norm,
    numbered,
    parts,
    product,
    sfa,
    sfa_up,
)
from naive_qkformer import State
from torch import Tensor


def meta(
    state: State,
    x: Tensor,
    neuron: Callable,
    sums: dict[str, Callable[[str, Tensor], Iterator[Tensor]]],
) -> Tensor:
    """Its parts in order; a block yields what is added one after the other, and is sent the sum."""
    for name in parts(state, r"downsample\w+|(ConvBlock|block)\w+\.\d+"):
        if name.startswith("downsample"):
            x = x if name == "downsample1_1" else neuron(x)
            names = f"{name}.encode_conv", f"{name}.encode_bn"
            x = conv_norm(state, names, x, 1 if name == "downsample4" else 2)
            continue
        for branch in sums["ConvBlock" if name.startswith("ConvBlock") else "block"](name):
            x = x + branch(neuron(x))
    return x


def sequence(state: State, neuron: Callable, *names: tuple[str, str]) -> Callable:
    """Convolutions with BatchNorm, and neurons between them."""

    def run(x: Tensor) -> Tensor:
        x = conv_norm(state, names[0], x)
        for pair in names[1:]:
            x = conv_norm(state, pair, neuron(x))
        return x

    return run


def metaspikeformer(state: State, x: Tensor, heads: int) -> Tensor:
    def sep(name: str, x: Tensor) -> Tensor:
        x = fire(conv_norm(state, (f"{name}.pwconv1", f"{name}.bn1"), x))
        x = conv(state, f"{name}.dwconv", x)
        return conv_norm(state, (f"{name}.pwconv2", f"{name}.bn2"), x)

    def rep(name: str, x: Tensor) -> Tensor:
        body = f"{name}.0.body"
        y = conv_norm(state, (f"{body}.0", f"{body}.1.bn"), x)
        zero = norm(state, f"{body}.1.bn", torch.zeros_like(y[:1, :1, :, :1, :1]))
        height, width = y.shape[3:]
        bordered = zero.expand(*y.shape[:3], height + 2, width + 2).clone()
        bordered[..., 1 : height + 1, 1 : width + 1] = y
        y = conv(state, f"{body}.2.0", bordered, pad=0)
        return norm(state, f"{name}.1", conv_norm(state, (f"{body}.2.1", f"{body}.2.2"), y))

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (fire(rep(f"{name}.{part}_conv", x)) for part in "qkv")
        return rep(f"{name}.proj_conv", fire(grid(0.125 * product(q, k, v, heads), x), 0.5))

    def conv_block(name: str) -> Iterator[Callable]:
        yield partial(sep, f"{name}.Conv")
        pairs = [(f"{name}.conv{i}", f"{name}.bn{i}") for i in (1, 2)]
        yield sequence(state, fire, *pairs)

    def block(name: str) -> Iterator[Callable]:
        yield partial(attention, f"{name}.attn")
        yield sequence(state, fire, *(fc(name, i) for i in (1, 2)))

    x = meta(state, x, fire, {"ConvBlock": conv_block, "block": block})
    return linear(state, "head", fire(x.mean((3, 4)))).mean(0)


def fc(name: str, i: int) -> tuple[str, str]:
    return f"{name}.mlp.fc{i}_conv", f"{name}.mlp.fc{i}_bn"


def espikeformer(state: State, x: Tensor, heads: int) -> Tensor:
    def conv_block(name: str) -> Iterator[Callable]:
        yield sequence(state, sfa, *numbered(f"{name}.Conv", "pwconv1", "dwconv", "pwconv2"))
        pairs = [(f"{name}.conv{i}", f"{name}.bn{i}") for i in (1, 2)]
        yield sequence(state, sfa, *pairs)

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v, proj = numbered(name, "q_conv", "k_conv", "v_conv", "proj_conv")
        q, k, v = (sfa(conv_norm(state, pair, x)) for pair in (q, k, v))
        scale = 2 / (x.shape[2] / heads) ** 0.5
        return conv_norm(state, proj, sfa(grid(product(q, k, v, heads) * scale, x)))

    def block(name: str) -> Iterator[Callable]:
        yield sequence(state, sfa, *numbered(f"{name}.conv", "pwconv1", "dwconv", "pwconv2"))
        yield partial(attention, f"{name}.attn")
        yield sequence(state, sfa, *(fc(name, i) for i in (1, 2)))

    x = meta(state, x, sfa, {"ConvBlock": conv_block, "block": block})
    return linear(state, "head", 4 * sfa(x.mean((3, 4)))).mean(0)


def large_espikeformer(state: State, x: Tensor, heads: int) -> Tensor:
    def scaled(name: str, which: int, branch: Callable) -> Callable:
        return lambda x: state[f"{name}.layer_scale{which}"].view(-1, 1, 1) * branch(x)

    def wide(name: str, x: Tensor) -> Tensor:
        for pair in numbered(f"{name}.0", "conv1", "conv2"):
            x = conv_norm(state, pair, x)
        return norm(state, f"{name}.1", x)

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (sfa_up(wide(f"{name}.{part}_conv", x)) for part in "qkv")
        return wide(f"{name}.proj_conv", sfa_up(grid(0.125 * product(q, k, v, heads), x)))

    def conv_block(name: str) -> Iterator[Callable]:
        yield sequence(state, sfa_up, *numbered(name, "conv1.0", "conv2.0"))

    def block(name: str) -> Iterator[Callable]:
        if f"{name}.rep_conv.conv1.0.weight" in state:
            pairs = numbered(f"{name}.rep_conv", "conv1", "conv2")
            yield sequence(state, lambda x: x, *pairs)
        yield scaled(name, 1, partial(attention, f"{name}.attn"))
        yield scaled(name, 2, sequence(state, sfa_up, *(fc(name, i) for i in (1, 2))))

    x = meta(state, x, sfa_up, {"ConvBlock": conv_block, "block": block}).mean((3, 4))
    first, second = linear(state, "head", x), linear(state, "head_kd", 4 * sfa_up(x))
    return ((first + second) / 2).mean(0)
