"""Contenders against each other: timed in turns, their memory one at a time.

A contender makes a step, a function without arguments; what it makes it of (a model, its input) is
not measured.
"""

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.energy import joules

MIB = 2**20
Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        name: In tables.
        make: Builds a step; can be pickled, as memory on the CPU is measured in a fresh process.
        missing: Why there is nothing to measure; then ``make`` is None.
        peer: It is what ours are compared with.
        graphed: Its step is the replay of a CUDA graph, which holds its memory throughout.
    """

    name: str
    make: Callable[[], Step] | None
    missing: str | None = None
    peer: bool = False
    graphed: bool = False


def compare(
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    repeats: int,
    items: int,
    memory: bool = True,
) -> list[dict[str, Any]]:
    """A row per contender: time in turns (A B C A B C ...), then memory.

    Args:
        contenders: The first one is what the others' ratios are against.
        device: Where they compute.
        repeats: Rounds that are timed; two more, before them, are not.
        items: Images (or whatever throughput counts) in one step.
        memory: Whether to measure memory, and the launches and energy of a GPU, too.

    Returns:
        Dicts of name and, where measured, seconds, per_second, ratio, cpu_ratio (of CPU time: what
        other programs take is not in it), peer_ratio (to the fastest of several peers), peak_mib,
        saved_mib, launches, joules (of an item); or of name and not_measured, the reason.
    """
    steps, reasons = _ready(contenders)
    rows = {name: {"name": name, "not_measured": reason} for name, reason in reasons.items()}
    wall, cpu = _timed_in_turns(steps, device, repeats)
    first = contenders[0].name
    peers = [contender.name for contender in contenders if contender.peer]
    fastest = _fastest({name: wall[name] for name in peers if name in steps})
    graphed = {contender.name for contender in contenders if contender.graphed}
    for name, step in steps.items():
        row = {"name": name, "seconds": spread(wall[name])}
        row["per_second"] = items / row["seconds"]["median"]
        if first in steps:
            row["ratio"] = spread(_ratios(wall[first], wall[name]))
            row["cpu_ratio"] = spread(_ratios(cpu[first], cpu[name]))
        if fastest is not None:
            row["peer_ratio"] = spread(_ratios(wall[fastest], wall[name]))
        if memory:
            row |= _costs(step, device, items, graphed=name in graphed)
        rows[name] = row
    steps.clear()
    if memory and device.type == "cpu":
        for contender in contenders:
            if contender.name not in reasons:
                rows[contender.name]["peak_mib"] = cpu_peaks([contender.make])[0]
    return [rows[contender.name] for contender in contenders]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles."""
    values = sorted(values)
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return dict(zip(("q1", "median", "q3"), quartiles, strict=True))


def saved_for_backward(step: Step) -> int:
    """Bytes that autograd keeps, each storage once, without parameters."""
    storages: dict[int, int] = {}
    parameters: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.is_leaf and tensor.requires_grad:
            parameters.add(storage.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def launched(step: Step) -> dict[str, list[float]]:
    """What a step starts on the GPU, kernels and copies: seconds of each launch, by name."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    return found


def cpu_peaks(
    makes: Sequence[Callable[[], Step]], *, own_pages: bool = False
) -> list[float | None]:
    """Peak memory of steps in MiB, beyond what was there before them; in one fresh process.

    Args:
        makes: One after the other.
        own_pages: Let every tensor above 64 KiB have pages of its own, so that a step finds none
            that the one before has left.

    Returns:
        A number per step; None where the system (other than Linux) does not say.
    """
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(2**16)} if own_pages else {}
    before = {key: os.environ.get(key) for key in threshold}
    os.environ.update(threshold)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_peaks_here, (list(makes), torch.get_num_threads(), own_pages))
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _costs(step: Step, device: torch.device, items: int, *, graphed: bool) -> dict[str, float]:
    """What a step takes beside time."""
    costs = {}
    if not graphed:
        costs["saved_mib"] = saved_for_backward(step) / MIB
    if device.type == "cuda":
        costs["launches"] = sum(map(len, launched(step).values()))
        energy = joules(step, device)
        if energy is not None:
            costs["joules"] = energy / items
        if not graphed:
            costs["peak_mib"] = _cuda_peak(step, device) / MIB
    return costs


def _fastest(seconds: dict[str, list[float]]) -> str | None:
    """Of several; None where there is no choice."""
    if len(seconds) < 2:
        return None
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def _ready(contenders: Sequence[Contender]) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that have run twice, and why the others cannot.

    The second time every model and input is in memory, as when they are timed: near the limit of a
    GPU's memory the first time says too little. A CUDA graph gives way to all others.
    """
    steps, reasons = {}, {}
    for contender in contenders:
        if contender.missing is not None:
            reasons[contender.name] = contender.missing
            continue
        try:
            steps[contender.name] = contender.make()
            steps[contender.name]()
        except (RuntimeError, ImportError) as error:  # no memory, no kernels, no compiler
            steps.pop(contender.name, None)  # and with it its model, before the next one's is made
            reasons[contender.name] = _first_line(error)
    graphs = [contender.name for contender in contenders if contender.graphed]
    for name in list(steps):
        while name in steps:
            try:
                steps[name]()
                break
            except RuntimeError as error:
                full = isinstance(error, torch.OutOfMemoryError)
                holding = [graph for graph in graphs if full and graph in steps]
                dropped = holding[-1] if holding else name
                del steps[dropped]
                reasons[dropped] = _first_line(error)
    return steps, reasons


def _peaks_here(makes: list[Callable[[], Step]], threads: int, warm_up: bool) -> list[float | None]:
    torch.set_num_threads(threads)
    status = Path("/proc/self/status")
    if not status.exists():
        return [None] * len(makes)
    peaks = []
    for make in makes:
        step = make()
        if warm_up:  # libraries set themselves up; where nothing is left, that does not hide memory
            step()
        # getrusage's peak is inherited from the process that started this one, and never falls
        Path("/proc/self/clear_refs").write_text("5")
        start = _kib(status, "VmRSS")
        step()
        peaks.append((_kib(status, "VmHWM") - start) / 1024)
        del step
    return peaks


def _kib(status: Path, key: str) -> int:
    return int(re.search(rf"^{key}:\s*(\d+) kB", status.read_text(), re.MULTILINE)[1])


def _cuda_peak(step: Step, device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _timed_in_turns(
    steps: dict[str, Step], device: torch.device, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall-clock and CPU seconds of every step in every round."""
    wall, cpu = ({name: [] for name in steps} for _ in range(2))
    for _ in range(repeats):
        for name, step in steps.items():
            _synchronize(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            _synchronize(device)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    return wall, cpu


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratios(baseline: list[float], values: list[float]) -> list[float]:
    """How many times faster, round by round."""
    return [b / max(value, 1e-9) for b, value in zip(baseline, values, strict=True)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
