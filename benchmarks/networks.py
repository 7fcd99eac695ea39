"""Steps of whole networks: SpikingJelly's QKFormer and ours, in training and in inference."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import qkformer as spikingjelly_qkformer
from torch import Tensor, nn

import qkformer
from benchmarks.measure import Step
from qkformer.training.environment import DTYPES, autocast
from qkformer.training.graph import WARM_UP, aside, capture

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
        optimizer: AdamW's step belongs to the step (training).
        graphed: The whole step is replayed as one CUDA graph.
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
    optimizer: bool = False
    graphed: bool = False

    def defaults(self) -> nn.Module:
        """The model without weights, to ask for T and the shape of the input."""
        with torch.device("meta"):
            return qkformer.create_model(self.model, **self.model_args)

    def at(self, size: int | None) -> "Setting":
        """With images of so many pixels; of the model's own for None."""
        return replace(self, size=size or self.defaults().default_cfg["input_size"][-1])

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
    """Forward, cross-entropy, backward, and AdamW's update if it is asked for."""
    model = _prepared(network(setting), setting).train()
    x = setting.inputs()
    targets = torch.arange(setting.batch, device=setting.device)
    optimizer = _optimizer(model, setting) if setting.optimizer else None

    def step() -> None:
        with autocast(setting.precision, setting.device):
            logits = model(x)
        F.cross_entropy(logits.float(), targets).backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if network is peer_network:  # ours keep no state
            functional.reset_net(model)

    return as_graph(step, setting.device) if setting.graphed else step


def _optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    """AdamW as one kernel, with its state; its rate is 0: every round is of the same weights."""
    capturable = setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True, capturable=capturable)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def inference_step(network: Callable[[Setting], nn.Module], setting: Setting) -> Step:
    """Forward without gradients."""
    dtype = DTYPES.get(setting.precision, torch.float32)
    model = network(setting).eval()
    if setting.folded:
        model = qkformer.fuse_for_inference(model)
    model = _prepared(model, setting).to(dtype)
    x = setting.inputs(dtype)

    def step() -> None:
        with torch.inference_mode():
            model(x)
        if network is peer_network:
            functional.reset_net(model)

    return as_graph(step, setting.device) if setting.graphed else step


def as_graph(step: Step, device: torch.device) -> Step:
    """A step on a GPU as the replay of one CUDA graph; its tensors stay where the graph has them.

    Raises:
        CaptureError: something in it cannot be captured.
    """
    for _ in range(WARM_UP):  # compiles kernels, chooses convolutions
        aside(step, device)
    return capture(step, device)


def _prepared(model: nn.Module, setting: Setting) -> nn.Module:
    layout = torch.channels_last if setting.channels_last else torch.preserve_format
    model = model.to(setting.device, memory_format=layout)
    return torch.compile(model) if setting.compiled else model
