"""Every kernel once, small, for compute-sanitizer: a race or an access out of bounds is its find.

`masks` is Q-K attention alone, which has shared memory and barriers: racecheck is slow.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import product

import torch
from torch import Tensor

from benchmarks.null_launcher import null_launcher
from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF, PLIF
from qkformer.neurons.cuda.qk_mask import qk_mask

SHAPES = ((4, 32, 7, 7), (4, 24, 6, 6), (16, 16, 8, 8), (33, 8, 4, 4))  # T, C, H, W


def main(arguments: list[str] | None = None) -> None:
    """Run the kernels of both, or of one."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("what", nargs="+", choices=("masks", "layers"))
    made.add_argument("--dry", action="store_true", help="no GPU, kernels that do nothing")
    options = made.parse_args(arguments)
    device = torch.device("cpu" if options.dry else "cuda")
    count = 0
    with null_launcher("cpu") if options.dry else nullcontext():
        for what in options.what:
            for run in {"masks": masks, "layers": layers}[what](device):
                run()
                count += 1
    if not options.dry:
        torch.cuda.synchronize()
    print(f"ran {count}")


def masks(device: torch.device) -> Iterator[Callable[[], None]]:
    """Q-K attention of tokens and of channels, in both layouts."""
    for (T, *sizes), last, heads in product(SHAPES, (False, True), (2, None)):
        spikes = [(torch.rand(T, 3, *sizes, device=device) < 0.3).half() for _ in range(2)]
        q, k = (_channels_last(t) if last else t for t in spikes)
        q, k = q.requires_grad_(), k.requires_grad_()
        out = qk_mask(q, k, heads=heads, reciprocal_tau=0.5, v_threshold=0.5)
        yield lambda out=out, inputs=(q, k): _backward(out, inputs)


def layers(device: torch.device) -> Iterator[Callable[[], None]]:
    """BatchNorm, pool and a neuron with a learned time constant; and a neuron alone."""
    for T, pool, last, size in product((4, 16, 33), (None, "before"), (False, True), (7, 8)):
        layer = ConvBNNeuron(3, 16, 3, bias=True, pool=pool, neuron=PLIF(backend="cupy"))
        layer = layer.to(device).half()
        layer.bn.float()
        layer.neuron.float()
        if last:
            layer.to(memory_format=torch.channels_last)
        for rows in (1, T):  # a static image, and frames
            x = torch.randn(rows, 2, 3, size, size, device=device).half().requires_grad_()
            yield lambda layer=layer, x=x, T=T: _backward(layer(x, T), (x, *layer.parameters()))
    x = torch.randn(4, 1001, device=device).requires_grad_()
    yield lambda: _backward(LIF(backend="cupy")(x), (x,))


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def _backward(out: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.autograd.grad(out, inputs, torch.ones_like(out))


if __name__ == "__main__":
    main()
