"""A whole training step as one CUDA graph: recorded once, then started by a single call.

A step is over a thousand kernels, which Python starts one by one; of small models a GPU waits for
it. A graph does the same on the same memory: inputs are copied to where it reads them, results from
where it leaves them, and nothing in it may depend on a value that the CPU knows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qkformer.text import first_sentence
from qkformer.training.config import Config, ConfigError
from qkformer.training.optimizer import is_fused

# Steps before a recording, as PyTorch's documentation has it; DistributedDataParallel arranges its
# buckets in its first ones.
WARM_UP, WARM_UP_OF_SEVERAL = 3, 11

Parts = Sequence[tuple[Tensor, Tensor]]  # samples and targets of the batches of a step
Results = tuple[list[tuple[Tensor, Tensor]], Tensor]  # loss and logits of each; gradient's norm


class CaptureError(RuntimeError):
    """A step cannot be recorded; nothing of it has happened."""


def obstacle(config: Config, device: torch.device, processes: int) -> str | None:
    """Why the step of this run is not recorded, and what to do; None where it is."""
    compute, optimizer = config.compute, config.optimizer
    if compute.cuda_graph is False:
        return "it is off"
    if device.type != "cuda":
        return "graphs are for GPUs; take auto or false"
    if compute.compile:
        return "compute.compile is another way around Python; set one of them to false"
    if compute.grad_checkpointing:
        return (
            "compute.grad_checkpointing reads the state of the random numbers, which no graph can; "
            "set one of them to false"
        )
    if not is_fused(optimizer):
        return (
            f"optimizer.name: {optimizer.name} has no fused step, which alone takes learning rate "
            "and gradient scale from the GPU's memory; adamw, adam, sgd and momentum have"
        )
    if processes > 1 and compute.cuda_graph == "auto":
        return (
            "recording the exchange of gradients has not been tried on GPUs yet; true does it as "
            "PyTorch documents it"
        )
    return None


def check_graph(config: Config, device: torch.device, processes: int) -> None:
    """Refuse `compute.cuda_graph: true` where it cannot be.

    Raises:
        ConfigError: with the reason and what to do.
    """
    reason = obstacle(config, device, processes)
    if reason and config.compute.cuda_graph is True:
        raise ConfigError(f"compute.cuda_graph: true, but {reason}")


def graph_remarks(config: Config, device: torch.device, processes: int) -> list[str]:
    """A line where a GPU trains without a graph that was not refused."""
    reason = obstacle(config, device, processes)
    if reason is None or device.type != "cuda" or config.compute.cuda_graph is False:
        return []
    return [f"compute.cuda_graph: auto, without a graph: {reason}"]


class GraphedStep:
    """A step, recorded once a few like it have run: then the graph takes its place.

    The first steps are steps of the run like all others, so that neither these nor the recording,
    which runs nothing, have to be undone. They are for what happens once only: compiled kernels,
    cuDNN's choice of algorithms, the optimizer's state. Where batches are of another size, as with
    damaged samples, the graph goes, for the memory that it holds, and all begins anew.

    Args:
        step: Takes `Parts`, returns `Results`; leaves no gradients behind.
        device: A CUDA device.
        processes: That take it together.
    """

    def __init__(
        self, step: Callable[[Parts], Results], device: torch.device, processes: int
    ) -> None:
        self.step, self.device = step, device
        self.warm_up = WARM_UP if processes == 1 else WARM_UP_OF_SEVERAL
        self.forget()

    def forget(self) -> None:
        """Begin anew; to be called when tensors take the place of those that the step knew."""
        self._replay: Callable[[], Results] | None = None
        self._inputs: Parts = ()
        self._shapes: list = []
        self._seen = 0

    def __call__(self, parts: Parts) -> Results:
        """Take a step.

        Raises:
            CaptureError: it cannot be recorded, and has not been taken.
        """
        shapes = [(x.shape, x.dtype) for part in parts for x in part]
        if shapes != self._shapes:
            self.forget()
            self._shapes = shapes
        if self._seen < self.warm_up:
            self._seen += 1
            return aside(lambda: self.step(parts), self.device)
        if self._replay is None:
            self._inputs = [tuple(x.clone() for x in part) for part in parts]
            self._replay = capture(lambda: self.step(self._inputs), self.device)
        else:
            for own, part in zip(self._inputs, parts, strict=True):
                for mine, given in zip(own, part, strict=True):
                    mine.copy_(given)
        results, norm = self._replay()  # the next replay writes to where these are
        return [(loss.clone(), logits.clone()) for loss, logits in results], norm.clone()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def aside(function: Callable[[], Any], device: torch.device) -> Any:
    """Call it on the stream of recordings, which cannot be the default one."""
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        results = function()
    current.wait_stream(side)
    return results


def capture(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Record what a function does on a GPU, without its happening.

    Returns:
        Does it, and returns what the function returned: the same tensors each time.

    Raises:
        CaptureError: it does what cannot be recorded.
    """
    graph, side = torch.cuda.CUDAGraph(), _side_stream(device)
    generator = torch.cuda.default_generators[side.device_index]
    random_numbers, reason = generator.clone_state(), None
    try:
        # Where recording fails, torch.cuda.graph does not leave its stream: hence the first one.
        # Only this thread's calls count: one that loads data may pin memory meanwhile.
        with (
            torch.cuda.stream(side),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            try:
                results = function()
            except RuntimeError as error:  # the end of the recording may fail too, and says less
                reason = error
                raise
    except RuntimeError as error:
        generator.graphsafe_set_state(random_numbers)  # the other believes to be recorded still
        raise CaptureError(first_sentence(reason or error)) from error

    def replay() -> Any:
        graph.replay()
        return results

    return replay
