"""The kernels' machine code for an H100: few spills, loads that wait together, no loop too long.

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

# kernel, T, channels last; at most: registers, instructions; at least: loads of a pack together.
# A tenth more than in the code as it is, but for registers that decide about a block more.
BOUNDS = [
    ("forward", 4, True, 128, 800, 8),
    ("forward", 16, True, 88, 890, 16),
    ("reduce", 4, True, 128, 1360, 8),
    ("reduce", 16, True, 128, 1270, 16),
    ("backward", 4, True, 128, 1220, 8),
    ("backward", 16, True, 128, 1300, 16),
    ("forward", 4, False, 88, 800, 8),
    ("reduce", 4, False, 128, 1200, 8),
    ("backward", 4, False, 128, 1160, 8),
    ("moments", 4, True, 80, 1590, 4),
    ("moments", 4, False, 80, 1480, 4),
    ("pooled_forward", 4, True, 84, 880, 9),
    ("pooled_forward", 16, True, 84, 890, 9),
    ("pooled_backward", 4, True, 128, 1610, 9),
    ("pooled_backward", 16, True, 128, 1500, 9),
    ("pooled_gather", 4, True, 85, 680, 8),
    ("pooled_forward", 4, False, 44, 440, 9),
    ("pooled_backward", 4, False, 80, 710, 9),
    ("pooled_backward", 16, False, 88, 1130, 9),
    ("pooled_gather", 4, False, 54, 430, 4),
]


class Recorder:
    """A launcher that runs nothing."""

    def __init__(self):
        self.variants: dict[str, loader.Variant] = {}

    def launch(self, kernel, blocks, argument, variant, device):
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
        call = launch.Call(y, None, None, neuron, steps, False, pool)
        grads = launch.forward(call, None)
        launch.moments(y)
        if pool:
            grad_max, places, _ = launch.pooled_backward(call, *grads)
            launch.pooled_gather(call, grad_max, places, None)
        else:
            launch.reduce(call, grads)
            launch.backward(call, grads, None)
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
    assert code.spills <= code.instructions // 50  # of what stays the same from pack to pack
    assert code.registers <= registers
    assert code.instructions <= instructions
    assert code.together[variant.vec * variant.dtype.itemsize] >= together
