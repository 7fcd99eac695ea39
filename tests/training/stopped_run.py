"""train.py on a few images, made to send itself a signal at a given point; for test_stops.py.

    SIGNAL_AT="rank:point:n:SIGNAL ..." python stopped_run.py CONFIG [options of train.py]

`n` counts the calls of the point, from 1; the signal comes before the n-th is carried out. In place
of a signal, ERROR raises an error there, and PAUSE waits until a signal comes.
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from qkformer.data.registry import DATASETS
from qkformer.data.source import DataError, ImageData
from qkformer.training import distributed, run, state

POINTS = {
    "step": (state.Keeper, "due"),  # behind every step and every test batch
    "best": (state.Keeper, "write_best"),
    "rename": (os, "replace"),
    "sleep": (time, "sleep"),
    "wait": (distributed.World, "wait"),
    "exit": (os, "_exit"),  # of a process among several
}


def few_images(config, *, T=None, training=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 99, (76, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(76) % 2
    images[labels == 1, :, :4] += 150
    parts = [TensorDataset(images[part], labels[part]) for part in (slice(56), slice(56, 76))]
    return ImageData(*parts, num_classes=2, mean=(0.4,), std=(0.3,))


def signal_at(rank, point, number, name):
    if rank != os.environ.get("RANK", "0"):
        return
    owner, attribute = POINTS[point]
    real, calls = getattr(owner, attribute), itertools.count(1)  # threads may call it

    def counting(*arguments, **options):
        if next(calls) == int(number):
            if name == "ERROR":
                raise DataError("a folder is gone")
            if name == "PAUSE":
                return signal.pause()
            os.kill(os.getpid(), getattr(signal, name))
        return real(*arguments, **options)

    setattr(owner, attribute, counting)


if __name__ == "__main__":
    torch.set_num_threads(1)
    DATASETS["few"] = few_images
    for place in os.environ["SIGNAL_AT"].split():
        signal_at(*place.split(":"))
    run.train(Path(sys.argv[1]), sys.argv[2:])
