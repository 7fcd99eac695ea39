"""QKFormer's forward in evaluation mode, naively, from a published state dict.

Written from the description of the architecture alone: no module of the package, every time step
computed, loops where loops say it best. What the package computes is compared with this where there
is no golden file: other seeds, batch sizes, time steps, resolutions.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
POOLED = {  # layers with a max pool in front of their neuron, by number of stem convolutions
    3: {"patch_embed1.proj", "patch_embed1.proj1", "patch_embed2.proj3", "patch_embed3.proj3"},
    2: {"patch_embed2.proj4", "patch_embed3.proj4"},
    4: {f"patch_embed1.proj{i}" for i in (1, 2, 3)} | {"patch_embed2.proj4"},
}


def lif(x: Tensor, threshold: float = 1.0) -> Tensor:
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        h = v + (current - v) / 2
        spikes.append((h >= threshold).to(x.dtype))
        v = h * (1 - spikes[-1])
    return torch.stack(spikes)


def conv_bn(state: State, name: str, x: Tensor, stride: int = 1, pool: bool = False) -> Tensor:
    """[T, B, C, H, W] -> the same axes."""
    weight = state[f"{name}_conv.weight"]
    weight = weight.reshape(*weight.shape[:2], *(weight.shape[2:] * 2)[:2] or (1, 1))
    steps = []
    for frame in x:
        y = F.conv2d(frame, weight, state.get(f"{name}_conv.bias"), stride, weight.shape[-1] // 2)
        y = F.batch_norm(
            y,
            *(state[f"{name}_bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")),
            eps=1e-5,
        )
        steps.append(F.max_pool2d(y, 3, 2, 1) if pool else y)
    return torch.stack(steps)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[T, B, C, H, W] -> [T, B, heads, C / heads, N]"""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads, -1)


def token_attention(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    q, k = (heads_of(lif(conv_bn(state, f"{name}.{n}", x)), heads) for n in "qk")
    mask = lif(q.sum(3, keepdim=True), 0.5)
    return lif(conv_bn(state, f"{name}.proj", (mask * k).reshape(x.shape)))


def self_attention(state: State, name: str, x: Tensor, heads: int, original: bool) -> Tensor:
    q, k, v = (heads_of(lif(conv_bn(state, f"{name}.{n}", x)), heads) for n in "qkv")
    product = torch.einsum("...dn,...dm,...em->...en", q, k, v)
    y = conv_bn(state, f"{name}.proj", lif(0.125 * product, 0.5).reshape(x.shape))
    return lif(y.flatten(0, 1)).reshape(x.shape) if original else lif(y)


def forward(state: State, x: Tensor, T: int, heads: int, original: bool) -> Tensor:
    """Images [B, C, H, W] or frames [B, T, C, H, W] -> logits."""
    x = torch.stack([x] * T) if x.ndim == 4 else x.transpose(0, 1)
    stem = sorted({m[0] for k in state if (m := re.match(r"patch_embed1\.proj\d?(?=_conv)", k))})
    for stage in range(1, 4 if "patch_embed3.proj_res_conv.weight" in state else 3):
        embed = f"patch_embed{stage}"
        layers = stem if stage == 1 else [f"{embed}.proj3", f"{embed}.proj4"]
        if f"{embed}.proj_conv.weight" in state and stage > 1:
            layers[0] = f"{embed}.proj"
        branch, branch_at = x, 0 if stage > 1 else 1 + len(stem) // 4
        for i, layer in enumerate(layers):
            branch = x if i == branch_at else branch
            x = lif(conv_bn(state, layer, x, pool=layer in POOLED[len(stem)]))
        stride = branch.shape[-1] // x.shape[-1]
        x = x + lif(conv_bn(state, f"{embed}.proj_res", branch, stride))
        block = 0
        while any(k.startswith(f"stage{stage}.{block}.") for k in state):
            name = f"stage{stage}.{block}"
            if f"{name}.tssa.q_conv.weight" in state:
                x = x + token_attention(state, f"{name}.tssa", x, heads)
            else:
                ssa = "attn" if f"{name}.attn.q_conv.weight" in state else "ssa"
                x = x + self_attention(state, f"{name}.{ssa}", x, heads, original)
            fc = "fc" if f"{name}.mlp.fc1_conv.weight" in state else "mlp"
            hidden = lif(conv_bn(state, f"{name}.mlp.{fc}1", x))
            x = x + lif(conv_bn(state, f"{name}.mlp.{fc}2", hidden))
            block += 1
    return F.linear(x.mean((0, 3, 4)), state["head.weight"], state["head.bias"])
