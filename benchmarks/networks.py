"""Whole networks as contenders: SpikingJelly's QKFormer and ours, in training and in inference."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import qkformer as spikingjelly_qkformer
from torch import Tensor, nn

import qkformer
from benchmarks.measure import Contender, Step
from qkformer.layers.conv_bn_neuron import FEW_CHANNELS
from qkformer.training.environment import DTYPES, autocast

# embed_dim and heads of the models that SpikingJelly's class can be told to be
PEERS = {"qkformer_10_384": (384, 6), "qkformer_10_512": (512, 8), "qkformer_10_768": (768, 12)}


@dataclass(frozen=True)
class Setting:
    """What all contenders of a comparison share, and how one of them differs.

    Attributes:
        model: Registered name.
        model_args: Other arguments of create_model.
        size: Height and width of the input.
        batch: Samples per step.
        precision: fp32, fp16, bf16: autocast in training, the weights' dtype in inference.
        device: Where.
        backend: Of our neurons.
        channels_last: Memory layout of convolutions.
        compiled: torch.compile.
        folded: BatchNorm folded into the convolutions (inference).
        graphed: Replayed as a CUDA graph (inference).
    """

    model: str
    size: int
    batch: int
    precision: str
    device: torch.device
    model_args: dict[str, Any] = field(default_factory=dict)
    backend: str = "torch"
    channels_last: bool = False
    compiled: bool = False
    folded: bool = False
    graphed: bool = False

    def defaults(self) -> nn.Module:
        """The model without weights, to ask for T and the shape of the input."""
        with torch.device("meta"):
            return qkformer.create_model(self.model, **self.model_args)

    def label(self) -> str:
        T = self.defaults().T
        arguments = "".join(f", {key} = {value}" for key, value in self.model_args.items())
        return (
            f"{self.model}{arguments}, {self.size} px, T = {T}, batch {self.batch}, "
            f"{self.precision}"
        )

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images [B, C, H, W]; frames [B, T, C, H, W] for the models of event data."""
        model = self.defaults()
        events = model.in_chans == 2
        shape = (self.batch, *([model.T] if events else []), model.in_chans, self.size, self.size)
        generator = torch.Generator().manual_seed(0)
        if events:
            return torch.poisson(torch.full(shape, 0.3), generator).to(self.device, dtype)
        return torch.randn(shape, generator=generator).to(self.device, dtype)


def contenders(
    setting: Setting, step: Callable, *, compiled: bool, folded: bool
) -> list[Contender]:
    """SpikingJelly first, then ours.

    Args:
        setting: What they share.
        step: training_step or inference_step.
        compiled: Add torch.compile of both.
        folded: Add ours with BatchNorm folded, and on a GPU as a CUDA graph.
    """
    peer = f"SpikingJelly {version('spikingjelly')}"
    variants = [
        (peer, peer_network, {}),
        (f"{peer}, channels_last", peer_network, {"channels_last": True}),
        ("ours, torch", our_network, {}),
        ("ours, torch, channels_last", our_network, {"channels_last": True}),
    ]
    if folded:
        variants += [
            ("ours, torch, folded", our_network, {"folded": True}),
            (
                "ours, torch, folded, channels_last",
                our_network,
                {"folded": True, "channels_last": True},
            ),
        ]
    if compiled:
        variants += [(f"{peer}, compiled", peer_network, {"compiled": True})]
        variants += [("ours, torch, compiled", our_network, {"compiled": True})]
    variants += _gpu_variants(setting, compiled=compiled, folded=folded)
    made = []
    for name, network, differing in variants:
        own = replace(setting, **differing)
        missing = _missing(own, step) if network is peer_network else None
        made.append(Contender(name, None if missing else partial(step, network, own), missing))
    return made


def _missing(setting: Setting, step: Callable) -> str | None:
    """Why SpikingJelly's network cannot be measured so, if it cannot."""
    if setting.model not in PEERS:
        return f"SpikingJelly has no {setting.model}"
    stem_channels = setting.model_args.get("embed_dim", PEERS[setting.model][0]) // 8
    channels_last = setting.channels_last or setting.compiled
    on_cpu = setting.device.type == "cpu"
    if step is training_step and on_cpu and channels_last and stem_channels < FEW_CHANNELS:
        return f"oneDNN's gradients are wrong for {stem_channels} channels, see SampledConv2d"
    return None


def _gpu_variants(setting: Setting, *, compiled: bool, folded: bool) -> list[tuple]:
    """Ours on CuPy's kernels, in inference always folded; on a CPU one row that says what lacks."""
    cupy = {"backend": "cupy", "folded": folded}
    variants = [("ours, cupy", our_network, cupy)]
    if setting.device.type == "cuda":
        last = cupy | {"channels_last": True}
        variants += [("ours, cupy, channels_last", our_network, last)]
        if compiled:
            variants += [("ours, cupy, compiled", our_network, cupy | {"compiled": True})]
        if folded:
            variants += [
                ("ours, cupy, CUDA graph", our_network, cupy | {"graphed": True}),
                ("ours, cupy, channels_last, CUDA graph", our_network, last | {"graphed": True}),
            ]
    return variants


def our_network(setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    return qkformer.create_model(setting.model, backend=setting.backend, **setting.model_args)


def peer_network(setting: Setting) -> nn.Module:
    """SpikingJelly's, with the widths and depths of ours; its backend is its own choice."""
    torch.manual_seed(0)
    arguments = dict(setting.model_args)
    dim, heads = PEERS[setting.model]
    heads = arguments.pop("num_heads", heads)
    return spikingjelly_qkformer.QKFormer(
        embed_dims=arguments.pop("embed_dim", dim),
        num_heads=(heads,) * 3,
        depths=arguments.pop("depths", (1, 2, 7)),
        **arguments,
    )


def training_step(network: Callable[[Setting], nn.Module], setting: Setting) -> Step:
    """Forward, cross-entropy, backward; the optimizer's step, the same for all, is left out."""
    model = _prepared(network(setting), setting).train()
    x = setting.inputs()
    targets = torch.arange(setting.batch, device=setting.device)

    def step() -> None:
        with autocast(setting.precision, setting.device):
            logits = model(x)
        F.cross_entropy(logits.float(), targets).backward()
        model.zero_grad(set_to_none=True)
        if network is peer_network:  # ours keep no state
            functional.reset_net(model)

    return step


def inference_step(network: Callable[[Setting], nn.Module], setting: Setting) -> Step:
    """Forward without gradients."""
    dtype = DTYPES.get(setting.precision, torch.float32)
    model = network(setting).eval()
    if setting.folded:
        model = qkformer.fuse_for_inference(model)
    model = _prepared(model, setting).to(dtype)
    x = setting.inputs(dtype)
    if setting.graphed:
        with torch.inference_mode():
            model = torch.cuda.make_graphed_callables(model, (x,))

    def step() -> None:
        with torch.inference_mode():
            model(x)
        if network is peer_network:
            functional.reset_net(model)

    return step


def _prepared(model: nn.Module, setting: Setting) -> nn.Module:
    layout = torch.channels_last if setting.channels_last else torch.preserve_format
    model = model.to(setting.device, memory_format=layout)
    return torch.compile(model) if setting.compiled else model
