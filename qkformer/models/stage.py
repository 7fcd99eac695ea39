"""Stages of a model: how they are written down, and the module they become."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qkformer.layers.block import SpikingBlock, Wiring
from qkformer.layers.patch_embed import EmbedSpec, PatchEmbed
from qkformer.neurons import SpikingNeuron

EmbedFunction = Callable[[int], EmbedSpec]  # channels -> embedding


@dataclass(frozen=True)
class Stage:
    """A patch embedding followed by ``depth`` equal blocks on ``dim`` channels."""

    embed: EmbedSpec
    dim: int
    depth: int
    mixer: str
    num_heads: int
    mlp_ratio: float


def hierarchy(
    embed_dim: int,
    depths: Sequence[int],
    mixers: Sequence[str],
    *,
    num_heads: int,
    mlp_ratio: float,
    stem: EmbedFunction,
    between: EmbedFunction,
    patch_embed: str = "speds",
) -> list[Stage]:
    """Stages whose width doubles from one to the next, up to ``embed_dim``.

    Args:
        depths, mixers: blocks and token mixer of each stage.
        num_heads, mlp_ratio: of every block.
        stem, between: the first embedding, and those between stages.
        patch_embed: "speds", or "sps" for the same convolutions without the deformed shortcut.

    Raises:
        ValueError: unknown ``patch_embed``; not as many mixers as depths; a width that cannot be
            halved as often as the stages and stems do.
    """
    if patch_embed not in ("speds", "sps"):
        raise ValueError(f"patch_embed must be 'speds' or 'sps', got {patch_embed!r}")
    if not depths or len(depths) != len(mixers):
        raise ValueError(f"mixers {tuple(mixers)} and depths {tuple(depths)} differ in length")
    if not all(isinstance(depth, int) and depth >= 0 for depth in depths):
        raise ValueError(f"depths must be integers of at least 0, got {tuple(depths)}")
    smallest = 2 ** len(depths)  # every stage halves the next one's width, the stem its own
    if not isinstance(embed_dim, int) or embed_dim < 1 or embed_dim % smallest:
        raise ValueError(f"embed_dim must be a multiple of {smallest}, got {embed_dim!r}")
    if not mlp_ratio > 0:
        raise ValueError(f"mlp_ratio must be above 0, got {mlp_ratio!r}")
    stages = []
    for i, (depth, mixer) in enumerate(zip(depths, mixers, strict=True)):
        dim = embed_dim // 2 ** (len(depths) - 1 - i)
        embed = between(dim) if i else stem(dim)
        if patch_embed == "sps":
            embed = embed.without_shortcut()
        stages.append(Stage(embed, dim, depth, mixer, num_heads, mlp_ratio))
    return stages


class SpikingStage(nn.Module):
    """Patch embedding, then blocks; recomputed in backward under gradient checkpointing.

    Args:
        embed: called with [T, B, C, H, W], or [1, B, C, H, W] of a static image, and T.
        blocks: on [T, B, C', H', W'].
        dim: channels C' of the output.
        downsampling: H / H'.
    """

    def __init__(self, embed: nn.Module, blocks: Iterable[nn.Module], dim: int, downsampling: int):
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)
        self.dim, self.downsampling = dim, downsampling
        self.grad_checkpointing = False

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """[T, B, C, H, W], or [1, B, C, H, W] to be repeated -> [T, B, C', H', W']"""
        run = _recomputed if self.grad_checkpointing and self.training else _called
        x = run(self.embed, x, time_steps)
        for block in self.blocks:
            x = run(block, x)
        return x


def make_stages(
    stages: Sequence[Stage],
    in_chans: int,
    *,
    wiring: Wiring,
    neuron: Callable[..., SpikingNeuron],
    drop_path_rate: float,
    ssa_options: dict,
) -> Iterator[SpikingStage]:
    """The modules of stages that are written down.

    Args:
        in_chans: channels of the input.
        wiring, neuron, ssa_options: as for :class:`~qkformer.layers.SpikingBlock`.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
    """
    depth = sum(stage.depth for stage in stages)
    drop_rates = iter(torch.linspace(0, drop_path_rate, depth, device="cpu").tolist())
    for i, stage in enumerate(stages):
        embed = PatchEmbed(in_chans, stage.embed, wiring=wiring, stem=i == 0, neuron=neuron)
        blocks = (
            SpikingBlock(
                stage.dim,
                stage.num_heads,
                mixer=stage.mixer,
                mlp_ratio=stage.mlp_ratio,
                wiring=wiring,
                neuron=neuron,
                drop_path=next(drop_rates),
                ssa_options=ssa_options,
            )
            for _ in range(stage.depth)
        )
        yield SpikingStage(embed, blocks, stage.dim, stage.embed.downsampling)
        in_chans = stage.dim


def _called(module: nn.Module, *inputs) -> Tensor:
    return module(*inputs)


def _recomputed(module: nn.Module, *inputs) -> Tensor:
    """Gradient checkpointing that counts a batch once in BatchNorm's running statistics."""

    def contexts():
        return nullcontext(), _running_statistics_frozen(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _running_statistics_frozen(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    state = [(bn.momentum, bn.num_batches_tracked) for bn in norms]
    for bn in norms:
        bn.momentum, bn.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for bn, (momentum, count) in zip(norms, state, strict=True):
            bn.momentum, bn.num_batches_tracked = momentum, count
