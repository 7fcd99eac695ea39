"""Neurons and layers of the naive forwards.

As ``naive_qkformer``, what is in this folder is written from the descriptions alone: no module of
the package, evaluation mode, every time step computed. It takes [T, B, C, H, W] and a state dict
under published names, and gives logits [B, classes].
"""

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from naive_qkformer import State, heads_of
from torch import Tensor

Act = Callable[[str, Tensor], Tensor]  # a layer's name and its current


def fire(
    x: Tensor, threshold: float = 1.0, *, tau: float | None = 2.0, strict=False, decay_input=True
) -> Tensor:
    """LIF with hard reset to 0, or, without tau, IF."""
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        if tau is None:
            h = v + current
        else:
            h = v + (current - v) / tau if decay_input else v - v / tau + current
        spikes.append((h > threshold if strict else h >= threshold).to(x.dtype))
        v = h * (1 - spikes[-1])
    return torch.stack(spikes)


tdbn_fire = partial(fire, strict=True, decay_input=False)


def sfa(x: Tensor) -> Tensor:
    return x.clamp(0, 4).round() / 4  # halves to even


def sfa_up(x: Tensor) -> Tensor:
    return (x.clamp(0, 4) + 0.5).floor() / 4


def quantised(state: State, levels: int, theta: str, name: str, x: Tensor) -> Tensor:
    theta = state[f"{name}.{theta}"]
    return theta * (levels * (x / theta).clamp(0, 1) + 0.5).floor() / levels


def converted(state: State, theta: str, name: str, x: Tensor) -> Tensor:
    """What a quantised activation becomes: IF from theta / 2, spikes of theta, taken from v."""
    theta = state[f"{name}.{theta}"]
    v, spikes = theta / 2, []
    for current in x:
        v = v + current
        spikes.append(theta * (v >= theta))
        v = v - spikes[-1]
    return torch.stack(spikes)


def parts(state: State, pattern: str) -> list[str]:
    """What keys start with, each once, in order."""
    return list(dict.fromkeys(m[0] for key in state if (m := re.match(pattern, key))))


def steps(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([function(frame) for frame in x])


def conv(state: State, name: str, x: Tensor, stride: int = 1, pad: int | None = None) -> Tensor:
    """Of any published shape; padded to keep the resolution unless told otherwise."""
    weight = state[f"{name}.weight"]
    weight = weight.reshape(*weight.shape[:2], *(*weight.shape[2:], 1, 1)[:2])
    pad = weight.shape[-1] // 2 if pad is None else pad
    bias, groups = state.get(f"{name}.bias"), x.shape[2] // weight.shape[1]
    return steps(lambda frame: F.conv2d(frame, weight, bias, stride, pad, groups=groups), x)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{leaf}"].view(-1, 1, 1)
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv_norm(state: State, names: tuple[str, str], x: Tensor, stride: int = 1) -> Tensor:
    return norm(state, names[1], conv(state, names[0], x, stride))


def max_pool(x: Tensor, stride: int = 2) -> Tensor:
    return steps(lambda frame: F.max_pool2d(frame, 3, stride, 1), x)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    return torch.einsum("...dn,...dm,...em->...en", q, k, v).flatten(2, 3)


def grid(tokens: Tensor, like: Tensor) -> Tensor:
    """[T, B, C, N] -> [T, B, C, H, W]"""
    return tokens.reshape(*tokens.shape[:3], *like.shape[3:])


def numbered(name: str, *parts: str) -> list[tuple[str, str]]:
    return [(f"{name}.{part}.0", f"{name}.{part}.1") for part in parts]
