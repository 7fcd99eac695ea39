"""How many processes load data, and whether the device waits for them."""

import os
from dataclasses import replace

from qkformer.data.source import DataConfig

MOST = 16  # decode more images of ImageNet than an H100 is expected to take; each holds two batches
NOTABLE = 0.1  # share of the time


def loading_processes(config: DataConfig) -> int:
    """Of one training process: what `data.workers` says, or its share of the cores, 1 to 16.

    torchrun tells how many processes share a machine's cores; srun gives every process its own.
    """
    if config.workers is not None:
        return config.workers
    return max(1, min(MOST, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def advice(config: DataConfig, images_per_second: float, waited: float) -> str | None:
    """A line on what would be faster, where a tenth of the time or more is spent waiting for data.

    Args:
        images_per_second: Of the run; what the loader gives, where it is waited for.
        waited: Share of the time. A GPU may compute meanwhile, hence "up to".
    """
    if not NOTABLE <= waited < 1:
        return None
    now, more = loading_processes(config), loading_processes(replace(config, workers=None))
    remedy = (
        f"data.workers: {more} instead of {now} may help"
        if now < more
        else f"{now} processes load already: faster storage, smaller files or more cores may help"
    )
    return (
        f"the loader gives {images_per_second:.0f} images/s, the device could take up to "
        f"{images_per_second / (1 - waited):.0f}; {remedy}"
    )
