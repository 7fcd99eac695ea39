"""The kernels' machine code for an H100: no spills, loads that wait together, no loop too long.

It is read, not run. The bounds are what NVRTC 13.0 gives and a tenth more, but 128 registers, of
which two blocks of 256 threads have enough.
"""

import nvrtc
import pytest
import sass
import torch

from qkformer.neurons.cuda import launch, loader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nvrtc.load(13) is None, reason="needs NVRTC of CUDA 13"),
    pytest.mark.skipif(sass.cuobjdump() is None, reason="needs cuobjdump, as in CUDA or Triton"),
]

# kernel, T, channels last; at most: registers, instructions; at least: loads of a pack together
BOUNDS = [
    ("pooled_forward", 4, True, 80, 900, 9),
    ("pooled_forward", 16, True, 80, 900, 9),
    ("pooled_backward", 4, True, 128, 2080, 9),
    ("pooled_backward", 16, True, 128, 2000, 9),
    ("pooled_gather", 4, True, 72, 630, 8),
    ("pooled_forward", 4, False, 50, 560, 9),
    ("pooled_forward", 16, False, 50, 560, 9),
    ("pooled_backward", 4, False, 88, 920, 9),
    ("pooled_backward", 16, False, 88, 1320, 9),
    ("pooled_gather", 4, False, 54, 370, 4),
]


class Recorder:
    """A launcher that runs nothing."""

    def __init__(self):
        self.variants: dict[str, loader.Variant] = {}

    def launch(self, kernel, threads, args, *, variant, device):
        self.variants[kernel] = variant


@pytest.fixture
def variants(monkeypatch):
    """By kernel what `launch` takes for float16, 96 channels and LIF."""
    recorder = Recorder()
    monkeypatch.setitem(loader.LAUNCHERS, "meta", recorder)

    def taken(steps: int, last: bool, pool: bool) -> dict[str, loader.Variant]:
        layout = torch.channels_last if last else torch.contiguous_format
        options = dict(dtype=torch.float16, device="meta", memory_format=layout)
        y = torch.empty(2 * steps, 96, 16, 16, **options)
        neuron = launch.Neuron(None, 0.5, 1.0, 0.0, 4.0)
        call = launch.Call(y, launch.Norm(), neuron, steps, False, pool)
        grads = launch.forward(call, None)
        if pool:
            grad_max, place, sums = launch.pooled_backward(call, *grads)
            launch.pooled_gather(call, grad_max, place, sums)
        else:
            launch.backward(call, grads, launch.reduce(call, grads))
        return recorder.variants

    return taken


@pytest.mark.parametrize(
    ("kernel", "steps", "last", "registers", "instructions", "together"),
    BOUNDS,
    ids=[f"{kernel}-T{steps}-{'last' if last else 'first'}" for kernel, steps, last, *_ in BOUNDS],
)
def test_code_keeps_to_its_bounds(variants, kernel, steps, last, registers, instructions, together):
    variant = variants(steps, last, pool="pooled" in kernel)[kernel]
    code = sass.compiled(variant)[kernel]
    assert code.stack == code.spills == 0
    assert code.registers <= registers
    assert code.instructions <= instructions
    assert code.together[variant.vec * variant.dtype.itemsize] >= together
