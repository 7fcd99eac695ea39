"""Residual networks: SEW-ResNet, ResNet-19 of the SNN literature, ResNet-18 for conversion.

SEW-ResNet: NeurIPS 2021, arXiv 2102.04159. ResNet-19: tdBN (AAAI 2021), TET (ICLR 2022). ResNet-18:
QCFS (ICLR 2022), see ``qkformer.peers.qcfs``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.layers import ConvBNNeuron
from qkformer.models.network import SpikingNetwork, neuron_maker
from qkformer.models.registry import cifar_cfg, image_cfg, register_variants
from qkformer.models.stage import SpikingStage
from qkformer.peers.qcfs import qcfs

Neuron = Callable[[], nn.Module]
CONNECTIONS = {
    "ADD": lambda branch, shortcut: branch + shortcut,
    "AND": lambda branch, shortcut: branch * shortcut,
    "IAND": lambda branch, shortcut: shortcut * (1 - branch),
}


class ResidualBlock(nn.Module):
    """Branch and shortcut, over [T, B, C, H, W].

    Args:
        branch: of convolutions, each with BatchNorm and, but for the last, a neuron.
        shortcut: None for the input itself.
        connection: of the two, a name of ``CONNECTIONS``.
        neuron: behind them, or None where the branch's last convolution has its own (SEW).
    """

    def __init__(
        self,
        branch: Sequence[ConvBNNeuron],
        shortcut: ConvBNNeuron | None,
        connection: str = "ADD",
        neuron: nn.Module | None = None,
    ):
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shortcut = shortcut
        self.connection = connection
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        y = CONNECTIONS[self.connection](branch, shortcut)
        return y if self.neuron is None else self.neuron(y)

    def extra_repr(self) -> str:
        return f"connection={self.connection}"


def residual_block(
    in_chans: int,
    dim: int,
    stride: int,
    *,
    neuron: Neuron,
    bottleneck: bool = False,
    project: bool = False,
    sew: str | None = None,
) -> ResidualBlock:
    """BasicBlock (two 3x3), or Bottleneck (1x1, 3x3, 1x1 to four times as many channels).

    Args:
        project: a 1x1 convolution in the shortcut even where the shape stays.
        sew: connection behind the neurons of branch and shortcut; None for a sum in front of one.
    """
    shape = [(3, dim, stride), (3, dim, 1)]
    if bottleneck:
        shape = [(1, dim, 1), (3, dim, stride), (1, 4 * dim, 1)]
    chans, branch = in_chans, []
    for i, (kernel_size, out_chans, step) in enumerate(shape):
        fires = sew is not None or i < len(shape) - 1
        made = neuron() if fires else None
        branch.append(ConvBNNeuron(chans, out_chans, kernel_size, stride=step, neuron=made))
        chans = out_chans
    shortcut = None
    if project or stride > 1 or chans != in_chans:
        made = neuron() if sew is not None else None
        shortcut = ConvBNNeuron(in_chans, chans, stride=stride, neuron=made)
    return ResidualBlock(branch, shortcut, sew or "ADD", None if sew is not None else neuron())


def residual_stages(
    stem: nn.Module,
    stem_dim: int,
    stem_downsampling: int,
    dims: Sequence[int],
    depths: Sequence[int],
    block: Callable[..., ResidualBlock],
    expansion: int = 1,
) -> Iterator[SpikingStage]:
    """Stem and first blocks, then stages that halve the resolution; ``dims``: of the blocks."""
    in_chans, embed, downsampling = stem_dim, stem, stem_downsampling
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        blocks = []
        for j in range(depth):
            stride = 2 if i and not j else 1
            blocks.append(block(in_chans, dim, stride, first=not j))
            in_chans = dim * expansion
        yield SpikingStage(embed, blocks, in_chans, downsampling)
        embed, downsampling = Unchanged(), 2


class Unchanged(nn.Module):
    """The entrance of a stage that has none."""

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        return x


class SEWStem(nn.Module):
    """conv 7x7 and BatchNorm on an image once, then T times: neuron, max pool; to 1/4 resolution.

    BatchNorm counts an image once, where ConvBNNeuron counts it T times: as published.
    """

    def __init__(self, in_chans: int, dim: int, neuron: nn.Module):
        super().__init__()
        self.conv = ConvBNNeuron(in_chans, dim, 7, stride=2)
        self.neuron = neuron

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        x = self.conv(x)
        x = self.neuron(x.expand(time_steps or len(x), *x.shape[1:]))
        return F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])


class SEWResNet(SpikingNetwork):
    """Spike-element-wise ResNet: sums of spikes grow within a stage.

    Args:
        depths: blocks of the four stages.
        bottleneck: of Bottlenecks, or of BasicBlocks.
        dims: channels of the stages' 3x3 convolutions.
        connection: "ADD" (all published ImageNet results), "AND" or "IAND".
        neuron, neuron_args, backend: as for :class:`~qkformer.models.base.SpikingTransformer`;
            as published, IF with the arctan surrogate.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        bottleneck: bool,
        dims: Sequence[int] = (64, 128, 256, 512),
        connection: Literal["ADD", "AND", "IAND"] = "ADD",
        in_chans: int = 3,
        neuron: str | Callable[..., nn.Module] = "if",
        neuron_args: dict[str, Any] | None = None,
        backend: str = "auto",
        **kwargs: Any,
    ):
        if connection not in CONNECTIONS:
            raise ValueError(f"connection must be one of {tuple(CONNECTIONS)}, got {connection!r}")
        args = {"surrogate": "arctan"} if neuron_args is None else neuron_args
        make = neuron_maker(neuron, args, backend)

        def block(in_chans: int, dim: int, stride: int, first: bool) -> ResidualBlock:
            kind = dict(neuron=make, bottleneck=bottleneck, sew=connection)
            return residual_block(in_chans, dim, stride, **kind)

        expansion = 4 if bottleneck else 1
        stem = SEWStem(in_chans, dims[0], make())
        stages = residual_stages(stem, dims[0], 4, dims, depths, block, expansion)
        super().__init__(stages, in_chans=in_chans, **kwargs)


def relu(**_of_spiking_neurons: Any) -> nn.Module:
    """What makes the activation of an ANN where a neuron is asked for."""
    return nn.ReLU()


# v <- v / 2 + x, fires above 1, hard reset that passes gradients
TDBN_NEURON = dict(surrogate="triangle", strict=True, detach_reset=False, decay_input=False)


class CIFARResNet(SpikingNetwork):
    """ResNet-19 and ResNet-18 for CIFAR: a 3x3 stem, no max pool, activation after addition.

    Args:
        stem_dim, dims: channels of the stem and of the stages.
        depths: blocks of the stages.
        hidden: width of a layer with activation in front of the head; None for no such layer.
        project: the first block of every stage has a convolution in its shortcut.
        neuron, neuron_args, backend: as for :class:`~qkformer.models.base.SpikingTransformer`;
            ``relu`` here or ``qkformer.peers.qcfs.qcfs`` for ANNs.
        kwargs: those of :class:`~qkformer.models.network.SpikingNetwork`.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        stem_dim: int = 64,
        hidden: int | None = None,
        project: bool = False,
        in_chans: int = 3,
        neuron: str | Callable[..., nn.Module],
        neuron_args: dict[str, Any] | None = None,
        backend: str = "auto",
        **kwargs: Any,
    ):
        make = neuron_maker(neuron, neuron_args, backend)

        def block(in_chans: int, dim: int, stride: int, first: bool) -> ResidualBlock:
            return residual_block(in_chans, dim, stride, neuron=make, project=project and first)

        stem = ConvBNNeuron(in_chans, stem_dim, 3, neuron=make())
        stages = residual_stages(stem, stem_dim, 1, dims, depths, block)
        head_neuron = nn.Sequential(nn.Linear(dims[-1], hidden), make()) if hidden else None
        super().__init__(stages, head_neuron, features=hidden, in_chans=in_chans, **kwargs)


register_variants(
    SEWResNet,
    {
        f"sew_resnet{name}": (
            image_cfg(first_conv="stages.0.embed.conv.conv"),
            dict(depths=depths, bottleneck=name > 50),
        )
        for name, depths in {34: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.items()
    },
)
_CIFAR = cifar_cfg() | dict(first_conv="stages.0.embed.conv")
_RESNET19 = dict(depths=(3, 3, 2), dims=(128, 256, 512), hidden=256, project=True)
_RESNET18 = dict(depths=(2, 2, 2, 2), dims=(64, 128, 256, 512), neuron=qcfs, T=1)
register_variants(
    CIFARResNet,
    {
        "resnet19": (_CIFAR, dict(_RESNET19, neuron=relu, T=1)),
        "resnet19_snn": (_CIFAR, dict(_RESNET19, neuron="lif", neuron_args=TDBN_NEURON)),
        "qcfs_resnet18": (_CIFAR, dict(_RESNET18, neuron_args={"levels": 8})),
    },
)
