"""The most images per second that training can reach on a GPU: a bound by bytes and products.

Bytes of one image's training step, forward and backward, of conv -> BatchNorm -> LIF with 2-byte
activations, computed from a trace of the models (224 px and T = 4; CIFAR 32 px; DVS 128 px and
T = 16): 44 bytes per convolution's output if BatchNorm and neuron are separate passes, 21 if they
are fused. To the time they take comes that by which convolutions take longer to compute than to
read and write. The optimizer's step is left out.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import qkformer


@dataclass(frozen=True)
class GPU:
    """What a ceiling depends on.

    Attributes:
        name: Part of what PyTorch calls the GPU.
        bandwidth: Of its memory, bytes/s read and written.
        throughput: Of products in fp16 or bf16 with fp32 sums, FLOP/s.
        source: Where the numbers are from.
    """

    name: str
    bandwidth: float
    throughput: float
    source: str


GPUS = (
    GPU("V100", 0.9e12, 125e12, "vendor"),
    GPU("A100", 2.04e12, 312e12, "vendor, 80 GB SXM"),
    GPU("H100", 3.0e12, 798e12, "measured: copy, product of 8192 x 8192 matrices"),
    GPU("H200", 4.3e12, 790e12, "measured: copy, product of 8192 x 8192 matrices"),
)


@dataclass(frozen=True)
class Ceiling:
    """MB that a model moves per image, unfused and fused."""

    unfused_mb: int
    fused_mb: int


CEILINGS = {
    "qkformer_10_384": Ceiling(3384, 1738),
    "qkformer_10_512": Ceiling(4510, 2316),
    "qkformer_10_768": Ceiling(6764, 3473),
    "qkformer_4_384": Ceiling(586, 312),
    "qkformer_2_256": Ceiling(1143, 644),
}
PUBLISHED_SIZE = dict.fromkeys(CEILINGS, (224, 4))  # pixels, T
PUBLISHED_SIZE |= {"qkformer_4_384": (32, 4), "qkformer_2_256": (128, 16)}


def known(name: str) -> GPU | None:
    """The GPU of the table that PyTorch calls so."""
    return next((gpu for gpu in GPUS if gpu.name in name), None)


def images_per_second(model: str, gpu: GPU, *, fused: bool = True) -> float:
    """The ceiling of training a model of ``CEILINGS`` at its published size."""
    ceiling = CEILINGS[model]
    moved = 1e6 * (ceiling.fused_mb if fused else ceiling.unfused_mb)
    seconds = moved / gpu.bandwidth
    for operations, size in _convolutions(model):  # forward, gradients of input and of weight
        seconds += 3 * max(0.0, operations / gpu.throughput - size / gpu.bandwidth)
    return 1 / seconds


def share(model: str, size: int, T: int, gpu: GPU, reached: float) -> float | None:
    """Share of the fused training ceiling, 0 to 1; None where there is no ceiling to compare with.

    Args:
        model: Its registered name, built without arguments of its own.
        size, T: The ceilings are for the published ones.
        gpu: As in ``GPUS``, or measured.
        reached: Images per second.
    """
    if (size, T) != PUBLISHED_SIZE.get(model):
        return None
    return reached / images_per_second(model, gpu)


def measured(device: torch.device, dtype: torch.dtype) -> GPU:
    """What this GPU gives now: a copy of 1 GiB, a product of 8192 x 8192 matrices."""
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, device)
    name = torch.cuda.get_device_name(device)
    return GPU(name, copy_bandwidth(device), 2 * side**3 / seconds, "measured in the same run")


def copy_bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes per second, read and written, of a copy of ``size`` bytes within the memory."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def median_seconds(
    function: Callable[[], object], device: torch.device, repeats: int = 20
) -> float:
    """Of calls that follow each other, after three that are not timed."""
    for _ in range(3):
        function()
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(repeats):
            function()
            marks.append(time.perf_counter())
        return statistics.median(b - a for a, b in itertools.pairwise(marks))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize(device)
    each = (a.elapsed_time(b) for a, b in itertools.pairwise(events))
    return statistics.median(each) / 1e3


@functools.cache
def _convolutions(model: str) -> list[tuple[int, int]]:
    """FLOP, and bytes of input and output, of every convolution of one image's forward pass."""
    size, T = PUBLISHED_SIZE[model]
    found = []

    def keep(conv: nn.Conv2d, inputs: tuple, output: torch.Tensor) -> None:
        operations = 2 * output.numel() * conv.weight[0].numel()
        found.append((operations, 2 * (inputs[0].numel() + output.numel())))

    with torch.device("meta"), torch.no_grad():
        network = qkformer.create_model(model, T=T, backend="torch")
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(keep)
        frames = (T,) if network.in_chans == 2 else ()
        network(torch.empty(1, *frames, network.in_chans, size, size))
    return found
