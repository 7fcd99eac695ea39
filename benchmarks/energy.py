"""What a step takes from the socket of the GPU: the board's own counter, read through NVML."""

import time
from collections.abc import Callable

import torch


def joules(
    step: Callable[[], object], device: torch.device, *, at_least: float = 1.0
) -> float | None:
    """Of one step, what the board takes at rest included.

    Args:
        step: Run again and again.
        device: A GPU.
        at_least: Seconds; the counter moves about every tenth of one.

    Returns:
        None where nvidia-ml-py is not installed, or the GPU has no counter (before Volta) or does
        not show it (parts of a GPU, some virtual machines).
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return _per_step(
                step, device, at_least, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            )
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _per_step(
    step: Callable[[], object],
    device: torch.device,
    at_least: float,
    millijoules: Callable[[], int],
) -> float:
    torch.cuda.synchronize(device)
    began, start, steps = time.perf_counter(), millijoules(), 0
    while time.perf_counter() - began < at_least:
        step()
        steps += 1
    torch.cuda.synchronize(device)
    return (millijoules() - start) / 1e3 / steps
