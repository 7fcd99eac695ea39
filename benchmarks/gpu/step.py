"""One model's training step: images/s, what the CPU takes, what the GPU does, and as a CUDA graph.

For every layout: milliseconds per step (steps follow each other without waiting), of the CPU alone
(until the step is handed over), of the GPU alone (its kernels' durations, profiled), launches, and
the share of each kind of kernel. Where the CPU's is near the step's own, the GPU waits for the CPU:
then --graph, the same step replayed as one CUDA graph, says what is to be gained. The step is
forward under autocast, cross-entropy, backward and AdamW; without gradient scaler.
"""

import argparse
import gc
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.gpu.options import LAYOUTS, common, kernel, setting
from benchmarks.measure import Step, launched
from benchmarks.networks import our_network, peer_network, training_step
from benchmarks.null_launcher import null_launcher
from qkformer.training.environment import DTYPES

MARKS = {  # what the names of kernels say, in order
    "layout conversions": ("nchwtonhwc", "nhwctonchw", "transpose", "tensortransform"),
    "weight gradients": ("wgrad",),
    "input gradients": ("dgrad",),
    "copies, fills": ("memcpy", "memset", "fillfunctor", "copy_kernel", "direct_copy", "catarray"),
    "optimizer": ("multi_tensor", "fused_adam", "adamw"),
    "convolutions, products": ("gemm", "conv", "xmma", "cutlass", "cudnn", "nvjet", "fprop"),
    "reductions": ("reduce_kernel", "splitk"),
    "elementwise": ("elementwise",),
}


def main(arguments: list[str] | None = None) -> None:
    """Print what was found, and write it to --out."""
    made = argparse.ArgumentParser(description=__doc__)
    common(made, batch=32)
    made.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    made.add_argument("--peer", action="store_true", help="SpikingJelly's network, not ours")
    made.add_argument("--graph", action="store_true")
    made.add_argument("--steps", type=int, default=15)
    options = made.parse_args(arguments)
    device = torch.device("cpu" if options.dry else "cuda")
    torch.backends.cudnn.benchmark = True
    gpu = None if options.dry else roofline.measured(device, DTYPES[options.precision])
    results = {}
    with null_launcher("cpu") if options.dry else nullcontext():
        for layout in options.layouts:
            try:
                results[layout] = measured(options, layout, device)
            except RuntimeError as error:  # one that fails does not hide the other
                print(f"{layout}: {error}"[:2000], flush=True)
                continue
            print("\n".join(shown(options, layout, results[layout], gpu)), flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps({**vars(options), "results": results}))


def measured(options: argparse.Namespace, layout: str, device: torch.device) -> dict[str, Any]:
    """Milliseconds per step, launches, kernels; of the graph too, if it is asked for."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = _step(options, layout, graphed=False)
    for _ in range(4):
        step()
    step_ms, cpu_ms = _step_and_cpu(step, options.steps, device)
    result = {"step_ms": step_ms, "cpu_ms": cpu_ms}
    result["images_per_s"] = options.batch / step_ms * 1e3
    if device.type == "cpu":
        return result
    result["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    result["kernels"] = {
        name: (sum(seconds) * 1e3, len(seconds)) for name, seconds in launched(step).items()
    }
    result["gpu_ms"] = sum(ms for ms, _ in result["kernels"].values())
    result["launches"] = sum(count for _, count in result["kernels"].values())
    del step
    gc.collect()
    torch.cuda.empty_cache()
    if options.graph:
        try:
            graph = _step(options, layout, graphed=True)
            result["graph_ms"] = _step_and_cpu(graph, options.steps, device)[0]
        except RuntimeError as error:
            result["graph_error"] = str(error)[:1500]
    return result


def _step(options: argparse.Namespace, layout: str, *, graphed: bool) -> Step:
    own = setting(
        options,
        options.precision,
        backend="cupy",
        channels_last=LAYOUTS[layout],
        optimizer=True,
        graphed=graphed,
    )
    return training_step(peer_network if options.peer else our_network, own)


def _step_and_cpu(step: Step, steps: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds per step when many are handed over, and until one alone is handed over."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else list
    blocks, alone = [], []
    for _ in range(3):
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        blocks.append((time.perf_counter() - start) / steps * 1e3)
    for _ in range(min(7, steps)):
        synchronize()
        start = time.perf_counter()
        step()
        alone.append((time.perf_counter() - start) * 1e3)
    synchronize()
    return statistics.median(blocks), statistics.median(alone)


def kind(name: str) -> str:
    """What a kernel does, as far as its name says."""
    own, lower = kernel(name), name.lower()
    if own is not None:
        return f"ours: {own}"
    found = (what for what, marks in MARKS.items() if any(mark in lower for mark in marks))
    return next(found, "other")


def shown(
    options: argparse.Namespace, layout: str, result: dict[str, Any], gpu: roofline.GPU | None
) -> list[str]:
    """Lines."""
    whose = "SpikingJelly's " if options.peer else ""
    lines = [
        f"\n## {whose}{options.model} batch {options.batch} {options.precision} {layout}: "
        f"{result['images_per_s']:.0f} images/s, {result['step_ms']:.2f} ms per step, "
        f"CPU {result['cpu_ms']:.2f} ms"
    ]
    if "graph_ms" in result:
        rate = options.batch / result["graph_ms"] * 1e3
        lines.append(f"as one CUDA graph: {result['graph_ms']:.2f} ms, {rate:.0f} images/s")
    elif "graph_error" in result:
        lines.append(f"as one CUDA graph: {result['graph_error']}")
    if gpu is not None and options.model in roofline.CEILINGS:
        ceiling = roofline.images_per_second(options.model, gpu)
        share = result["images_per_s"] / ceiling
        lines.append(
            f"{share:.0%} of the fused ceiling, {ceiling:.0f} images/s at "
            f"{gpu.bandwidth / 1e12:.2f} TB/s and {gpu.throughput / 1e12:.0f} TFLOP/s"
        )
    if "kernels" in result:
        lines += _kinds(result)
    return lines


def _kinds(result: dict[str, Any]) -> list[str]:
    kinds, counts = Counter(), Counter()
    for name, (ms, launches) in result["kernels"].items():
        kinds[kind(name)] += ms
        counts[kind(name)] += launches
    total = max(result["gpu_ms"], 1e-9)
    lines = [
        f"GPU busy {result['gpu_ms']:.2f} ms in {result['launches']} launches; "
        f"peak {result['peak_mib']:.0f} MiB"
    ]
    for what, ms in kinds.most_common():
        lines.append(f"  {ms:8.3f} ms {ms / total:5.1%} {counts[what]:5d} x {what}")
    lines.append("  kernels:")
    ranked = sorted(result["kernels"].items(), key=lambda item: -item[1][0])
    for name, (ms, launches) in ranked[:18]:
        lines.append(f"  {ms:8.3f} ms {launches:5d} x {name[:110]}")
    return lines


if __name__ == "__main__":
    main()
