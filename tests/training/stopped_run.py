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

from qkformer.data.source import DataError
from qkformer.training import distributed, main
from qkformer.training.checkpointing import Checkpoints

POINTS = {
    "step": (Checkpoints, "due"),  # behind every step and every test batch
    "best": (Checkpoints, "write_best"),
    "rename": (os, "replace"),
    "sleep": (time, "sleep"),
    "wait": (distributed.World, "wait_for_data"),
    "exit": (os, "_exit"),  # of a process among several
}


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
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from training.few import register

    torch.set_num_threads(1)
    register()
    for place in os.environ["SIGNAL_AT"].split():
        signal_at(*place.split(":"))
    main.train(Path(sys.argv[1]), sys.argv[2:])
