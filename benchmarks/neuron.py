"""One LIF layer, forward and backward: SpikingJelly's, the plain reference, ours."""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import neuron as spikingjelly_neuron
from torch import Tensor

from benchmarks import report
from benchmarks.measure import Contender, Step, compare
from benchmarks.options import parser, set_up, threads_label
from benchmarks.results_file import save
from qkformer.neurons import LIF, reference
from qkformer.training.environment import DTYPES


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    made = parser(__doc__, repeats=15)
    made.add_argument("--T", type=int, nargs="+", default=[4, 16], help="time steps")
    made.add_argument(
        "--shape",
        default=["1,96,56,56", "1,384,14,14"],
        nargs="+",
        help="B,C,H,W of a time step; those of 10-384's first and last stage",
    )
    made.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = made.parse_args(arguments)
    device = set_up(options)
    for shape in options.shape:
        for T in options.T:
            _compare((T, *map(int, shape.split(","))), device, options, arguments)


def _compare(
    shape: tuple[int, ...],
    device: torch.device,
    options: argparse.Namespace,
    arguments: list[str],
) -> None:
    x = torch.empty(shape, device="meta")
    dtype = DTYPES.get(options.precision, torch.float32)
    step = partial(_step, shape=shape, dtype=dtype, device=device)
    contenders = [
        Contender("SpikingJelly LIFNode", partial(step, _spikingjelly)),
        Contender("plain PyTorch (reference)", partial(step, _reference)),
        Contender("ours, torch", partial(step, partial(_ours, "torch"))),
        Contender("ours, cupy", partial(step, partial(_ours, "cupy"))),
    ]
    rows = compare(
        contenders,
        device,
        repeats=options.repeats,
        items=x.numel(),
        memory=not options.no_memory,
    )
    label = f"LIF [T, B, C, H, W] = {list(shape)}, {options.precision}{threads_label(device)}"
    save(options.results, "neuron", label, device, arguments, {"rows": rows})
    print(f"\n{label}\n\n{report.comparison('neuron', rows)}", flush=True)


def _step(
    make: Callable[[], Callable[[Tensor], Tensor]],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Step:
    generator = torch.Generator().manual_seed(0)
    x = (1.5 * torch.randn(shape, generator=generator) + 0.3).to(device, dtype).requires_grad_()
    grad = torch.randn(shape, generator=generator).to(device, dtype)
    neuron = make()
    # a view: what counts as saved for backward are activations, not leaves such as parameters
    return lambda: torch.autograd.grad(neuron(x.view_as(x)), x, grad)


def _spikingjelly() -> Callable[[Tensor], Tensor]:
    node = spikingjelly_neuron.LIFNode(step_mode="m", detach_reset=True)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


def _reference() -> Callable[[Tensor], Tensor]:
    return partial(reference.spike_sequence, reciprocal_tau=0.5)


def _ours(backend: str) -> Callable[[Tensor], Tensor]:
    return LIF(backend=backend)


if __name__ == "__main__":
    main()
