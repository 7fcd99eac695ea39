"""One attention layer with its projections, forward and backward: QKTA, QKCA, SSA."""

import sys
from collections.abc import Callable
from functools import partial

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.layer import attention as spikingjelly_attention
from torch import nn

from benchmarks import report
from benchmarks.measure import Contender, Step, compare
from benchmarks.options import parser, set_up, threads_label
from benchmarks.results_file import save
from qkformer.layers import QKChannelAttention, QKTokenAttention, SpikingSelfAttention
from qkformer.neurons import LIF

OURS = {"QKTA": QKTokenAttention, "QKCA": QKChannelAttention, "SSA": SpikingSelfAttention}
PEERS = {
    "QKTA": partial(spikingjelly_attention.QKAttention, qka_type="token"),
    "QKCA": partial(spikingjelly_attention.QKAttention, qka_type="channel"),
    "SSA": spikingjelly_attention.SpikingSelfAttention,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    made = parser(__doc__, repeats=9)
    made.add_argument("--kinds", nargs="+", choices=OURS, default=list(OURS))
    made.add_argument("--dim", type=int, default=384, help="channels; 10-384's last stage")
    made.add_argument("--heads", type=int, default=6)
    made.add_argument("--side", type=int, default=14, help="square root of the number of tokens")
    made.add_argument("--T", type=int, default=4)
    made.add_argument("--batch", type=int, default=1)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = made.parse_args(arguments)
    device = set_up(options)
    shape = (options.T, options.batch, options.dim, options.side, options.side)
    for kind in options.kinds:
        step = partial(_step, kind, options.heads, shape, device)
        contenders = [
            Contender("SpikingJelly", partial(step, None)),
            Contender("ours, torch", partial(step, "torch")),
            Contender("ours, cupy", partial(step, "cupy")),
        ]
        rows = compare(
            contenders,
            device,
            repeats=options.repeats,
            items=options.batch,
            memory=not options.no_memory,
        )
        label = (
            f"{kind} [T, B, C, H, W] = {list(shape)}, {options.heads} heads, fp32"
            f"{threads_label(device)}"
        )
        save(options.results, "attention", label, device, arguments, {"rows": rows})
        print(f"\n{label}\n\n{report.comparison('attention', rows)}", flush=True)


def _step(
    kind: str, heads: int, shape: tuple[int, ...], device: torch.device, backend: str | None
) -> Step:
    """Ours on ``backend``, or SpikingJelly's for None; it takes tokens [T, B, C, N]."""
    torch.manual_seed(0)
    make: Callable[..., nn.Module] = PEERS[kind] if backend is None else OURS[kind]
    options = {} if backend is None else {"neuron": partial(LIF, backend=backend)}
    layer = make(shape[2], heads, **options).to(device)
    spikes = (torch.rand(shape) < 0.2).float().to(device)
    x = (spikes.flatten(3) if backend is None else spikes).requires_grad_()
    grad = torch.randn_like(x)

    def step() -> None:
        y = layer(x.view_as(x))  # a view: leaves do not count as saved for backward
        torch.autograd.grad(y, [x, *layer.parameters()], grad)
        if backend is None:
            functional.reset_net(layer)

    return step


if __name__ == "__main__":
    main()
