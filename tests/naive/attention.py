"""Masked Spiking Transformer, window by window, and STSA, token by token."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from naive.layers import Act, conv, conv_norm, linear, max_pool, norm, parts, steps, tdbn_fire
from naive_qkformer import State, heads_of
from torch import Tensor


def mst(state: State, x: Tensor, act: Act, heads: Sequence[int], window: int) -> Tensor:
    patches = [state[f"patch_embed.proj.{leaf}"] for leaf in ("weight", "bias")]
    x = steps(lambda image: F.conv2d(image, *patches, stride=4), x)
    x = act("patch_embed.proj_if", norm(state, "patch_embed.norm", x))
    for i, heads_of_stage in enumerate(heads):
        for block in parts(state, rf"layers\.{i}\.blocks\.\d+"):
            shifted = int(block.rpartition(".")[2]) % 2 and min(x.shape[3:]) > window
            shift = window // 2 if shifted else 0
            y = act(f"{block}.shortcut1_if", norm(state, f"{block}.norm1", x))
            x = x + window_attention(state, f"{block}.attn", y, act, heads_of_stage, window, shift)
            x = norm(state, f"{block}.norm2", x)
            y = act(f"{block}.shortcut2_if", x)
            for n in (1, 2):
                fc, bn = f"{block}.mlp.fc{n}", f"{block}.mlp.norm{n}"
                y = act(f"{fc}_if", conv_norm(state, (fc, bn), y))
            x = x + y
        down = f"layers.{i}.downsample"
        if f"{down}.reduction.weight" in state:
            corners = ((0, 0), (1, 0), (0, 1), (1, 1))  # row, column
            x = torch.cat([x[..., row::2, column::2] for row, column in corners], 2)
            x = conv(state, f"{down}.reduction", norm(state, f"{down}.norm", x))
            x = act(f"{down}.reduction_if", x)
    tokens = x.flatten(3).transpose(2, 3)
    tokens = F.layer_norm(tokens, tokens.shape[-1:], state["norm.weight"], state["norm.bias"])
    return linear(state, "head", tokens.mean((0, 2)))


def window_attention(
    state: State, name: str, x: Tensor, act: Act, heads: int, window: int, shift: int
) -> Tensor:
    """Window by window; tokens that the shift has wrapped around see no others."""
    height, width = x.shape[3:]
    q, k, v = conv(state, f"{name}.qkv", x).roll((-shift, -shift), (3, 4)).chunk(3, 2)
    q, k, v = act(f"{name}.q_if", q), act(f"{name}.k_if", k), act(f"{name}.v_if", v)
    windows = [(i, j) for i in range(0, height, window) for j in range(0, width, window)]
    cut = lambda y, i, j: heads_of(y[..., i : i + window, j : j + window], heads)  # noqa: E731
    scale = (x.shape[2] // heads) ** -0.5
    scores = torch.stack(
        [torch.einsum("...dn,...dm->...nm", cut(q, *at) * scale, cut(k, *at)) for at in windows], 2
    )
    scores = act(f"{name}.attn_if", scores)  # [T, B, windows, heads, N, N]
    table = state[f"{name}.relative_position_bias_table"]
    cells = [(row, column) for row in range(window) for column in range(window)]
    for n, (row, column) in enumerate(cells):
        for m, (other_row, other_column) in enumerate(cells):
            down, right = row - other_row + window - 1, column - other_column + window - 1
            scores[..., n, m] += table[down * (2 * window - 1) + right]
            for w, (i, j) in enumerate(windows):
                wrapped = i + row + shift >= height, j + column + shift >= width
                others = i + other_row + shift >= height, j + other_column + shift >= width
                scores[:, :, w, :, n, m] -= 100.0 * (wrapped != others)
    y = torch.zeros_like(x)
    for w, (i, j) in enumerate(windows):
        of_window = torch.einsum("...nm,...em->...en", scores[:, :, w].softmax(-1), cut(v, i, j))
        of_window = of_window.reshape(*x.shape[:3], window, window)
        y[..., i : i + window, j : j + window] = of_window
    y = act(f"{name}.attn_v_if", y).roll((shift, shift), (3, 4))
    return act(f"{name}.proj_if", conv(state, f"{name}.proj", y))


def stsa(state: State, x: Tensor, original: bool) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return tdbn_fire(conv_norm(state, (f"{name}_conv", f"{name}_bn"), x))

    for i in range(1, 5):
        x = max_pool(layer(f"conv_stem.block{i}", x))
    x = x + layer("conv_stem.block5", x)
    for block in parts(state, r"block\.\d+"):
        x = x + layer(f"{block}.attn.proj", tdbn_fire(attend(state, f"{block}.attn", x, original)))
        x = x + layer(f"{block}.mlp.fc2", layer(f"{block}.mlp.fc1", x))
    return linear(state, "classification", x.mean((3, 4))).mean(0)


def attend(state: State, name: str, x: Tensor, original: bool) -> Tensor:
    """Token by token, of one head; ``original``: [T, B, C, N] read as [B, C, T N]."""
    T, B, C, H, W = x.shape
    if original:
        x = x.reshape(B, C, T, H, W).permute(2, 0, 1, 3, 4)
    y = conv_norm(state, (f"{name}.qkv_conv", f"{name}.qkv_bn"), x)
    q, k, v = tdbn_fire(y).chunk(3, 2)  # [T, B, C, H, W]
    table, out = state[f"{name}.relative_position_bias_table"], torch.zeros_like(x)
    places = [(t, i, j) for t in range(T) for i in range(H) for j in range(W)]
    for t, i, j in places:
        for s, m, n in places:
            if s <= t:
                row = ((t - s + T - 1) * (2 * H - 1) + i - m + H - 1) * (2 * W - 1) + j - n + W - 1
                score = (q[t, :, :, i, j] * k[s, :, :, m, n]).sum(1) + table[row, 0]
                out[t, :, :, i, j] += 0.125 * score[:, None] * v[s, :, :, m, n]
    return out
