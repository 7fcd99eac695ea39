"""Meta-SpikeFormer (ICLR 2024, arXiv 2404.03663) and E-SpikeFormer (arXiv 2411.16061).

Spike-driven Transformer V2 and V3: stages of convolutional blocks, then of attention, on membrane
currents. E-SpikeFormer's neurons give integers in training, binary steps at inference (see SFA).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qkformer.layers import SpikingMLP
from qkformer.models.network import SpikingNetwork, check_integers, check_rates, neuron_maker
from qkformer.models.registry import image_cfg, register_variants
from qkformer.models.stage import SpikingStage
from qkformer.neurons import SFA, SpikingNeuron
from qkformer.peers.meta_layers import (
    ChannelScale,
    ConvBNNeuron,
    Downsample,
    Neuron,
    RepConv,
    block,
    channel_conv,
    projected_attention,
    separable,
    spiking_separable,
    wide_projection,
    wide_value_attention,
)

Block = Callable[[int, float], nn.Module]  # of its channels and its drop_path


def _stages(
    in_chans: int,
    dims: Sequence[int],
    depths: Sequence[int],
    *,
    neuron: Neuron,
    conv: Block,
    attention: Block,
    drop_path_rate: float,
) -> Iterator[SpikingStage]:
    """Three stages of convolutional blocks to 1/8 resolution, the others of attention at 1/16.

    ``dims``: of the stages but the first, which has half of the second's.
    """
    if len(depths) != len(dims) + 1:
        raise ValueError(f"depths must be one more than dims, got {tuple(depths)}, {tuple(dims)}")
    check_integers(in_chans=(in_chans, 1))
    check_rates(drop_path_rate=drop_path_rate)
    drop_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
    for i, (dim, depth) in enumerate(zip((dims[0] // 2, *dims), depths, strict=True)):
        stride = 2 if i < 4 else 1
        embed = Downsample(in_chans, dim, 3 if i else 7, stride, neuron() if i else None)
        make = conv if i < 3 else attention
        yield SpikingStage(embed, (make(dim, next(drop_rates)) for _ in range(depth)), dim, stride)
        in_chans = dim


class _Distilled(SpikingNetwork):
    """A second head, taught by a teacher; both are averaged, but for distilled training.

    Args:
        distilled: whether there is one.
        head_on_currents: the first head takes the mean over space itself, and only the second what
            the head's neuron makes of it.
    """

    def __init__(
        self,
        stages: Iterator[SpikingStage],
        head_neuron: nn.Module,
        *,
        distilled: bool = False,
        head_on_currents: bool = False,
        **kwargs: Any,
    ):
        self.distilled, self.head_on_currents = distilled, head_on_currents
        self.distilled_training = False
        super().__init__(
            stages, None if head_on_currents and not distilled else head_neuron, **kwargs
        )

    def set_distilled_training(self, enable: bool = True) -> None:
        """timm's switch: in training mode, ``forward`` returns the logits of both heads."""
        self.distilled_training = enable

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, or both, as timm's distilled models give them."""
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        if self.distilled:
            like = next(self.parameters())
            second = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
            self.head_dist = second.to(device=like.device, dtype=like.dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False, per_step: bool = False) -> Tensor:
        if not self.distilled or not self.global_pool:
            return super().forward_head(x, pre_logits, per_step)
        x = x.mean((3, 4))
        fired = self.head_neuron(x)
        inputs = torch.stack([x if self.head_on_currents else fired, fired], 2)
        if not per_step:
            inputs = self.over_time(inputs)
        first, second = self.head_drop(inputs).unbind(-2)
        if not pre_logits:
            first, second = self.head(first), self.head_dist(second)
            if self.distilled_training and self.training:
                return first, second
        return (first + second) / 2


class MetaSpikeFormer(_Distilled):
    """Spike-driven Transformer V2.

    Args:
        dims: channels of the last four stages; the first has half of the second's.
        depths: blocks of the five stages.
        num_heads, mlp_ratio: of the blocks with attention.
        distilled: with a second head, as the released models have it.
        drop_path_rate, neuron, neuron_args, backend: as for
            :class:`~qkformer.models.base.SpikingTransformer`.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        neuron: str | Callable[..., SpikingNeuron] = "lif",
        neuron_args: dict[str, Any] | None = None,
        backend: str = "auto",
        drop_path_rate: float = 0.0,
        distilled: bool = False,
        **kwargs: Any,
    ):
        make = neuron_maker(neuron, neuron_args, backend)

        def conv(dim: int, drop_path: float) -> nn.Module:
            return block(make, drop_path, sep=separable(dim, make), conv=channel_conv(dim, make))

        def attention(dim: int, drop_path: float) -> nn.Module:
            attn = projected_attention(dim, num_heads, make, RepConv, v_threshold=0.5)
            mlp = SpikingMLP(dim, int(dim * mlp_ratio), neuron=make, out_neuron=False)
            return block(make, drop_path, attn=attn, mlp=mlp)

        options = dict(neuron=make, conv=conv, attention=attention, drop_path_rate=drop_path_rate)
        stages = _stages(in_chans, dims, depths, **options)
        super().__init__(stages, make(), in_chans=in_chans, distilled=distilled, **kwargs)


class ESpikeFormer(_Distilled):
    """Spike-driven Transformer V3.

    Args:
        dims, depths, num_heads, mlp_ratio, drop_path_rate: as for :class:`MetaSpikeFormer`.
        levels: largest integer of a neuron, and time steps of the unrolled network.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        levels: int = 4,
        drop_path_rate: float = 0.0,
        T: int = 1,
        **kwargs: Any,
    ):
        neuron = partial(SFA, levels)

        def conv(dim: int, drop_path: float) -> nn.Module:
            sep = spiking_separable(dim, neuron, kernel_size=7)
            return block(neuron, drop_path, sep=sep, conv=channel_conv(dim, neuron))

        def attention(dim: int, drop_path: float) -> nn.Module:
            sep = spiking_separable(dim, neuron, kernel_size=3)
            attn = wide_value_attention(dim, num_heads, neuron)
            mlp = SpikingMLP(dim, int(dim * mlp_ratio), neuron=neuron, out_neuron=False)
            return block(neuron, drop_path, sep=sep, attn=attn, mlp=mlp)

        options = dict(neuron=neuron, conv=conv, attention=attention)
        stages = _stages(in_chans, dims, depths, drop_path_rate=drop_path_rate, **options)
        super().__init__(stages, neuron(divide=False), in_chans=in_chans, T=T, **kwargs)


class LargeESpikeFormer(_Distilled):
    """The E-SpikeFormers that were pretrained as masked autoencoders.

    Args:
        dims: channels of the last three stages.
        depths: blocks of the four stages.
        rep: the blocks with attention begin with two 1x1 convolutions.
        distilled: with a second head, as released.
        kwargs: the others of :class:`ESpikeFormer`.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        levels: int = 4,
        drop_path_rate: float = 0.0,
        rep: bool,
        distilled: bool = True,
        T: int = 1,
        **kwargs: Any,
    ):
        neuron = partial(SFA, levels, "up")

        def conv(dim: int, drop_path: float) -> nn.Module:
            return block(neuron, drop_path, conv=channel_conv(dim, neuron, bias=True))

        def attention(dim: int, drop_path: float) -> nn.Module:
            branches = {}
            if rep:
                branches["rep"] = nn.Sequential(ConvBNNeuron(dim, dim), ConvBNNeuron(dim, dim))
            attn = projected_attention(dim, num_heads, neuron, wide_projection)
            mlp = SpikingMLP(dim, int(dim * mlp_ratio), neuron=neuron, out_neuron=False)
            branches["attn"] = nn.Sequential(attn, ChannelScale(dim))
            branches["mlp"] = nn.Sequential(mlp, ChannelScale(dim))
            return block(neuron, drop_path, **branches)

        options = dict(neuron=neuron, conv=conv, attention=attention)
        super().__init__(
            _stages(in_chans, dims, depths, drop_path_rate=drop_path_rate, **options),
            neuron(divide=False),
            in_chans=in_chans,
            distilled=distilled,
            head_on_currents=True,
            T=T,
            **kwargs,
        )


_CFG = image_cfg(first_conv="stages.0.embed.conv")
_V3_CFG = image_cfg(first_conv="stages.0.embed.conv", crop_pct=224 / 232)
_LARGE_CFG = _V3_CFG | dict(classifier=("head", "head_dist"))
register_variants(
    MetaSpikeFormer,
    {
        f"metaspikformer_8_{name}": (_CFG, dict(dims=dims, depths=(1, 1, 2, 6, 2)))
        for name, dims in {
            384: (96, 192, 384, 480),
            512: (128, 256, 512, 640),
            768: (192, 384, 768, 960),
        }.items()
    },
)
register_variants(
    ESpikeFormer,
    {
        f"espikeformer_{size}": (_V3_CFG, dict(dims=dims, depths=(1, 1, 2, 6, 2)))
        for size, dims in {
            "t": (24, 48, 96, 128),
            "s": (32, 64, 128, 192),
            "m": (48, 96, 192, 240),
            "l": (64, 128, 256, 360),
        }.items()
    },
)
register_variants(
    LargeESpikeFormer,
    {
        f"espikeformer_12_{dims[-1]}": (_LARGE_CFG, dict(dims=dims, depths=(1, 1, 2, 12), rep=rep))
        for dims, rep in (((128, 256, 512), True), ((196, 384, 768), False))
    },
)
