"""Cost of token mixing against tokens N, time steps T, channels D and batch B; forward only.

The attentions alone, on given spikes q, k (and v), without projections, with one head, as in the
memory figure of QKFormer's paper (arXiv 2403.16552). SSA in both orders: q (k^T v), linear
in N, and (q k^T) v, which stores the N x N map.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.measure import Contender, Step, compare, cpu_peaks
from benchmarks.options import parser, set_up, threads_label
from benchmarks.results_file import machine_name, save, slug
from qkformer.layers.attention import MASK_THRESHOLD
from qkformer.neurons.functional import spike_sequence

Sizes = dict[str, int]
_lif = partial(spike_sequence, reciprocal_tau=0.5, v_threshold=MASK_THRESHOLD)


def qkta(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Token attention: q, k, v [T, B, D, N] -> the same."""
    return _lif(q.sum(2, keepdim=True)) * k


def qkca(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Channel attention; shapes as in qkta."""
    return _lif(q.sum(3, keepdim=True)) * k


def ssa_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SSA as q (k^T v): a D x D matrix between."""
    return _lif((v @ k.mT) @ q * 0.125)


def ssa_map(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SSA as (q k^T) v: an N x N matrix between."""
    return _lif(v @ (k.mT @ q) * 0.125)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "QKTA": qkta,
    "QKCA": qkca,
    "SSA, q (k^T v)": ssa_linear,
    "SSA, (q k^T) v, N x N map stored": ssa_map,
}


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when results and plot are saved."""
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--N", type=int, nargs="+", default=[625, 1225, 2500, 4900, 10000])
    made.add_argument("--T", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    made.add_argument("--D", type=int, nargs="+", default=[64, 128, 256, 512])
    made.add_argument("--B", type=int, nargs="+", default=[1, 2, 4, 8])
    made.add_argument("--base", default="1,1,256,784", help="T,B,D,N of what does not vary")
    made.add_argument("--no_plot", action="store_true", help="leave the plot out")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = made.parse_args(arguments)
    device = set_up(options)
    base = dict(zip("TBDN", map(int, options.base.split(",")), strict=True))
    points = []
    for axis in "NTDB":
        for value in getattr(options, axis):
            points += _measure(axis, base | {axis: value}, device, options)
    if device.type == "cpu" and not options.no_memory:
        _add_cpu_peaks(points, device)
    fixed = ", ".join(f"{axis} = {value}" for axis, value in base.items())
    label = f"one head, fp32, forward; where not varied {fixed}{threads_label(device)}"
    save(options.results, "scaling", label, device, arguments, {"points": points})
    print(f"\n{label}\n\n{report.scaling(points)}", flush=True)
    if not options.no_plot:
        from benchmarks.plot import plot_scaling

        plot_scaling(points, options.results / f"{slug(machine_name(device))}-scaling.png")


def _measure(
    axis: str, sizes: Sizes, device: torch.device, options: argparse.Namespace
) -> list[dict]:
    contenders = [Contender(kind, partial(_step, kind, sizes, device)) for kind in KINDS]
    # on the CPU, memory is measured for all points together
    memory = device.type == "cuda" and not options.no_memory
    rows = compare(contenders, device, repeats=options.repeats, items=sizes["B"], memory=memory)
    kept = ("seconds", "peak_mib", "not_measured")
    return [
        {"axis": axis, "kind": row["name"], **sizes} | {k: row[k] for k in kept if k in row}
        for row in rows
    ]


def _step(kind: str, sizes: Sizes, device: torch.device) -> Step:
    T, B, D, N = (sizes[axis] for axis in "TBDN")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        (torch.rand(T, B, D, N, generator=generator) < 0.2).float().to(device) for _ in range(3)
    )

    def step() -> None:
        with torch.inference_mode():
            KINDS[kind](q, k, v)

    return step


def _add_cpu_peaks(points: list[dict], device: torch.device) -> None:
    measured = [point for point in points if "seconds" in point]
    makes = [
        partial(_step, point["kind"], {axis: point[axis] for axis in "TBDN"}, device)
        for point in measured
    ]
    for point, peak in zip(measured, cpu_peaks(makes, own_pages=True), strict=True):
        point["peak_mib"] = peak


if __name__ == "__main__":
    main()
