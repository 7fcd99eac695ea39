"""What is exported: a model as it is deployed, inputs to try it on, a check of the result."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkformer.data.source import EventData
from qkformer.export.streaming import Streaming
from qkformer.inference import fuse_for_inference
from qkformer.models import SpikingNetwork
from qkformer.neurons import FIRING

EXAMPLE_BATCH, CHECKED_BATCHES = 2, (1, 3)
CHECKED_STEPS = 4  # of a streaming model


class ExportError(ValueError):
    """A model cannot be exported so; the message is one line that says why and what to do."""


def need(*packages: str) -> None:
    """Raises ExportError if one is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"needs {' and '.join(missing)}: pip install 'qkformer[export]'")


@dataclass(frozen=True)
class Subject:
    """A folded model, float32 on the CPU, and what goes in and out.

    Attributes:
        model: a network, or a :class:`Streaming`.
        shape: of a sample: [C, H, W], or [T, C, H, W].
        dynamic_batch: whether the batch is free, or 1.
    """

    model: SpikingNetwork | Streaming
    shape: tuple[int, ...]
    dynamic_batch: bool

    @property
    def states(self) -> list[str]:
        return self.model.names if isinstance(self.model, Streaming) else []

    @property
    def input_names(self) -> list[str]:
        frames = "frames" if len(self.shape) == 4 else "images"
        return ["frame", *self.states] if self.states else [frames]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *(f"next.{name}" for name in self.states)]

    def samples(self, batch: int) -> Tensor:
        """Random ones: event counts where there are two polarities, else normalised pixels."""
        generator = torch.Generator().manual_seed(batch)
        size = (batch, *self.shape)
        if self.shape[-3] == EventData.in_chans:
            return torch.poisson(torch.full(size, 0.5), generator=generator)
        return torch.randn(size, generator=generator)

    def inputs(self) -> tuple[Tensor, ...]:
        """An example of all inputs."""
        x = self.samples(EXAMPLE_BATCH if self.dynamic_batch else 1)
        return (x, *self.model.start(x)) if self.states else (x,)

    def dynamic_shapes(self) -> tuple | None:
        """As torch.export wants them: a tree like the arguments of ``forward``."""
        if not self.dynamic_batch:
            return None
        batch = {0: torch.export.Dim("batch", min=1)}
        return (batch, (batch,) * len(self.states)) if self.states else (batch,)

    def start(self) -> dict[str, float]:
        """Those states that do not start from 0, with the value from which they do."""
        values = self.model.start(self.samples(1)) if self.states else ()
        starts = {name: v.flatten()[0].item() for name, v in zip(self.states, values, strict=True)}
        return {name: start for name, start in starts.items() if start}


def prepare(
    model: nn.Module,
    image_size: int | tuple[int, int],
    frames: int | None = None,
    dynamic_batch: bool = True,
) -> Subject:
    """A copy of the model for exporting, see ``export_onnx``.

    Raises:
        ExportError: the model is of another kind or in training mode, or does not take this input.
    """
    if not isinstance(model, SpikingNetwork | Streaming):
        raise ExportError(
            f"expected a model of qkformer or qkformer.streaming(model), got {type(model).__name__}"
        )
    stream = isinstance(model, Streaming)
    network = model.model if stream else model
    if network.training:
        raise ExportError(f"{type(network).__name__} is in training mode: call model.eval() first")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    multiple = network.downsampling
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 and n % multiple == 0 for n in size):
        raise ExportError(
            f"image_size must be one or two multiples of {multiple} for {type(network).__name__}, "
            f"got {image_size}"
        )
    if frames is not None and (stream or not isinstance(frames, int) or frames < 1):
        raise ExportError(f"frames must be a number of at least 1, none for streaming; {frames}")
    steps = () if frames is None else (frames,)
    folded = fuse_for_inference(model).float().cpu().requires_grad_(False)
    return Subject(folded, (*steps, network.in_chans, *size), dynamic_batch)


@dataclass(frozen=True)
class Agreement:
    """How another runtime's outputs compare with PyTorch's.

    Attributes:
        runtime: which.
        samples, agree: how many were tried, and how many are of the same class in both.
        difference, logits: largest difference of two logits, and largest absolute logit.
        rate: share of the neurons' outputs that are spikes.
        silent, neurons: layers of neurons that did not fire, of how many.
    """

    runtime: str
    samples: int
    agree: int
    difference: float
    logits: float
    rate: float
    silent: int
    neurons: int

    def __str__(self) -> str:
        return (
            f"{self.runtime} against PyTorch on {self.samples} random samples: largest difference "
            f"{self.difference:.2g} of logits up to {self.logits:.3g}, the same class in "
            f"{self.agree} of {self.samples}; firing rate {100 * self.rate:.1f} %, "
            f"{self.silent} of {self.neurons} layers of neurons silent"
        )


@torch.no_grad()
def compare(
    subject: Subject, runtime: str, run: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
) -> Agreement:
    """Compare, in batches of several sizes where the batch is free.

    Args:
        runtime: name and version.
        run: all inputs to all outputs of the exported model, as that runtime computes them.

    Raises:
        ExportError: the classes of a sample differ, or the model does not fire.
    """
    ours, theirs = [], []
    with _spikes(subject.model) as spikes:
        for batch in CHECKED_BATCHES if subject.dynamic_batch else (1,):
            x = subject.samples(batch)
            ours.append(_logits(subject, lambda inputs: _tuple(subject.model(*inputs)), x))
            theirs.append(_logits(subject, run, x))
    expected, found = torch.cat(ours), torch.cat(theirs)
    fired = sum(count for count, _ in spikes.values())
    agreement = Agreement(
        runtime=runtime,
        samples=len(expected),
        agree=int((expected.argmax(1) == found.argmax(1)).sum()),
        difference=(expected - found).abs().max().item(),
        logits=expected.abs().max().item(),
        rate=fired / max(sum(total for _, total in spikes.values()), 1),
        silent=sum(not count for count, _ in spikes.values()),
        neurons=len(spikes),
    )
    if spikes and not fired:
        raise ExportError("no neuron fires, so a check shows nothing: check=False does without")
    if agreement.agree < agreement.samples:
        raise ExportError(f"not written, the exported model is another one: {agreement}")
    return agreement


def _logits(subject: Subject, run: Callable, x: Tensor) -> Tensor:
    if not subject.states:
        return run((x,))[0]
    states = subject.model.start(x)
    for step in range(CHECKED_STEPS):
        logits, *states = run((x.roll(step, -1), *states))
    return logits


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@contextmanager
def _spikes(model: nn.Module) -> Iterator[dict[nn.Module, tuple[int, int]]]:
    """How often the neurons fire inside, and could."""
    counts = {module: (0, 0) for module in model.modules() if isinstance(module, FIRING)}

    def count(module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        fired, total = counts[module]
        counts[module] = fired + int(out.count_nonzero()), total + out.numel()

    hooks = [module.register_forward_hook(count) for module in counts]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        graph: its format and size, in words.
        nodes: operations in its graph.
        agreement: how it compares with PyTorch; None if that was not asked for.
    """

    path: Path
    graph: str
    nodes: int
    agreement: Agreement | None

    def __str__(self) -> str:
        megabytes = self.path.stat().st_size / 1e6
        checked = self.agreement or "not checked"
        return f"{self.path}: {self.graph}, {self.nodes} nodes, {megabytes:.1f} MB\n{checked}"
