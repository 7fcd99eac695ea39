"""Time and bandwidth of each of our kernels, at the shapes of a model's training step.

The operators that a training step calls are called again, each by itself, on tensors of the same
shapes and layouts, on several sets of them in turn, so that the L2 cache does not help. PyTorch's
profiler says how long each kernel took. TB/s count what a kernel must move, each input read and
each output written once; `share` is of a device-to-device copy's, measured first. The last lines
say what all layers take per image, kernel by kernel.
"""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.gpu.calls import Call, Calls, bytes_of, described
from benchmarks.gpu.options import LAYOUTS, common, kernel, setting
from benchmarks.measure import launched
from benchmarks.networks import our_network, training_step
from benchmarks.null_launcher import NullLauncher, null_launcher

ENOUGH = 500e6  # bytes of all sets of tensors: ten times the L2
ROUNDS = 8
LINE = "{:18}{:9}{:16}{:20}{:>6}{:>10}{:>7}{:>7}"
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write it to --out."""
    made = argparse.ArgumentParser(description=__doc__)
    common(made, batch=64)
    made.add_argument("--dtypes", nargs="+", choices=("fp16", "bf16"), default=["fp16", "bf16"])
    made.add_argument("--once", action="store_true", help="each kernel once, not timed (for ncu)")
    options = made.parse_args(arguments)
    device, size = ("cpu", 2**20) if options.dry else ("cuda", 2**30)
    peak = roofline.copy_bandwidth(torch.device(device), size)
    print(f"{options.model}, batch {options.batch}; copy: {peak / 1e12:.2f} TB/s")
    print(LINE.format("kernel", "", "C,H,W", "what", "times", "us", "TB/s", "share"), flush=True)
    rows: list[Row] = []
    with null_launcher("cpu") if options.dry else nullcontext() as launcher:
        for precision in options.dtypes:
            for layout in options.layouts:
                kind = f"{precision} {layout}"
                for call, times in recorded(options, precision, layout).items():
                    for row in measured(call, launcher, once=options.once):
                        rows.append({"kind": kind, "times": times} | row)
                        print(_shown(rows[-1], peak), flush=True)
                print(_totals([row for row in rows if row["kind"] == kind], options.batch, peak))
    if options.out:
        Path(options.out).write_text(json.dumps({"copy": peak, "rows": rows, **vars(options)}))


def recorded(options: argparse.Namespace, precision: str, layout: str) -> Counter[Call]:
    """The calls of one training step."""
    step = training_step(
        our_network, setting(options, precision, backend="cupy", channels_last=LAYOUTS[layout])
    )
    with Calls() as calls:
        step()
    return calls.counted


def measured(call: Call, launcher: NullLauncher | None, *, once: bool) -> Iterator[Row]:
    """A row per kernel of a call.

    Args:
        call: On a GPU, or on the CPU where there is a launcher.
        launcher: Says which kernels would have run; then nothing is timed.
        once: Run it once, without a row.
    """
    outputs: object
    if launcher is not None:
        launcher.launched.clear()
        outputs = call.on(torch.device("cpu"))()
        seconds = dict.fromkeys(launcher.launched)
    else:
        try:
            seconds, outputs = {}, call.on(torch.device("cuda"))()
            if not once:
                seconds = _timed(call)
        except RuntimeError as error:  # one that fails does not hide the others
            print(f"{call.operation} {call.shape} {call}: {error}"[:300], flush=True)
            return
    written = bytes_of(described(outputs))
    for name, each in seconds.items():
        row = {"kernel": name, "shape": call.shape, "what": str(call), "seconds": each}
        yield row | {"least": call.least(name, written)}


def _timed(call: Call) -> dict[str, float]:
    """Seconds of each of a call's kernels; all that are not ours together."""
    sets = max(1, min(8, math.ceil(ENOUGH / call.read)))
    functions = [call.on(torch.device("cuda")) for _ in range(sets)]

    def everything(rounds: int) -> None:
        for _ in range(rounds):
            for function in functions:
                function()

    everything(2)
    found: dict[str, float] = {}
    for name, seconds in launched(lambda: everything(ROUNDS)).items():
        own = kernel(name) or "PyTorch's"
        per_call = statistics.median(seconds) * len(seconds) / (ROUNDS * sets)
        found[own] = found.get(own, 0.0) + per_call
    return found


def _shown(row: Row, peak: float) -> str:
    numbers = ["-"] * 3
    if row["seconds"]:
        numbers[0] = f"{row['seconds'] * 1e6:.1f}"
        if row["least"]:
            rate = row["least"] / row["seconds"]
            numbers[1:] = f"{rate / 1e12:.2f}", f"{rate / peak:.0%}"
    texts = (row[key] for key in ("kernel", "kind", "shape", "what", "times"))
    return LINE.format(*texts, *numbers)


def _totals(rows: list[Row], batch: int, peak: float) -> str:
    """Microseconds per image of all layers, and what they would be at the copy's bandwidth."""
    names: dict[str, list[float]] = {"all": [0.0, 0.0]}
    for row in rows:
        for name in ("all", row["kernel"]):
            total = names.setdefault(name, [0.0, 0.0])
            total[0] += row["times"] * (row["seconds"] or 0) * 1e6 / batch
            total[1] += row["times"] * (row["least"] or 0) / peak * 1e6 / batch
    lines = ["us per image (at the copy's bandwidth it would be)"]
    for name, (us, bound) in sorted(names.items(), key=lambda item: -item[1][0]):
        lines.append(f"  {name:18}{us:8.1f} ({bound:.1f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
