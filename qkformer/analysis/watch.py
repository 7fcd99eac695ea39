"""Hooks on a model for the time of a pass, and nothing of it left behind."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from qkformer.analysis.census import Census
from qkformer.analysis.tallies import NeuronTally
from qkformer.analysis.tally import Tally


def counted(model: nn.Module, x: Tensor, census: Census) -> int:
    """Run the model; operations as torch counts them, two to a multiply-accumulate."""
    # fused attention is invisible to the counter on a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, census:
        census.counting = True
        model(x)
    census.counting = False
    return flops.get_total_flops()


@contextmanager
def hooked(tally: Tally, census: Census) -> Iterator[None]:
    """``tally`` sees every call of its module; the census sees neither it nor inside neurons."""

    def before(*_: object) -> None:
        census.inside += 1

    def after(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        with _disable_current_modes() if census.counting else nullcontext():
            tally(module, args or tuple(kwargs.values()), out)
        census.inside -= neuron

    neuron = isinstance(tally, NeuronTally)
    handles = [tally.module.register_forward_hook(after, with_kwargs=True)]
    if neuron:
        handles.append(tally.module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the modes and the memories of neurons from before."""
    modes = [(module, module.training) for module in model.modules()]
    memories = [
        (module, dict(module.named_memories()))
        for module in model.modules()
        if isinstance(module, MemoryModule)
    ]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, values in memories:
            for name, value in values.items():
                setattr(module, name, value)


def forget(model: nn.Module, tallies: list[Tally]) -> None:
    """Neurons of SpikingJelly remember the batch before."""
    for module in model.modules():
        if isinstance(module, MemoryModule):
            module.reset()
    for tally in tallies:
        tally.at = 0
